-- Query 0, pass through: every bid as it is. Measures decoding, encoding and the way between.
SELECT auction, bidder, price, date_time, extra
FROM bid
