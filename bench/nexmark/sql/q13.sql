-- Query 13, bounded side input: every bid with the value that a table of 10,000 fixed rows has for its auction.
--
-- A stream must have read the whole table before the first bid.
SELECT b.auction, b.bidder, b.price, b.date_time, s.value
FROM bid b JOIN side_input s ON b.auction % 10000 = s.key
