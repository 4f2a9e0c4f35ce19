-- Query 7, highest bid: the bids with the highest price of every 10 seconds, all of them if there are several.
--
-- The maximum is over all bids: a stream finds those of every partition (or key) first and compares them in one
-- place. (The text for Flink also gives a bid that is made as the next window begins and happens to have the same
-- price.)
SELECT auction, bidder, price, date_time, extra
FROM bid
QUALIFY price = max(price) OVER (PARTITION BY date_time // 10000)
