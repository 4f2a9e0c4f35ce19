-- Query 1, currency conversion: the price of every bid in euros. The factor is a decimal number, so the price is
-- exact.
SELECT auction, bidder, 0.908 * price AS price, date_time, extra
FROM bid
