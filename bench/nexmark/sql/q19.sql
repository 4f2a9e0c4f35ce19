-- Query 19, auction top 10 price: the ten highest bids on every auction; of equal ones the earlier, then the one
-- that arrived first ("seq", the place in the topic).
--
-- A stream changes the ranks with every high bid; this is the last state of every auction. Bids count whether or
-- not the auction is open.
SELECT
    auction, bidder, price, channel, url, date_time, extra,
    row_number() OVER (PARTITION BY auction ORDER BY price DESC, date_time, seq) AS rank_number
FROM bid
QUALIFY rank_number <= 10
