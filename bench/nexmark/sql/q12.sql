-- Query 12, processing time windows: how many bids did a bidder make in each 10 seconds?
--
-- The query is about the time at which bids are processed, which differs from run to run, so no batch query can
-- tell the windows. This is its reading in event time, for runs that take their time from the bids. A run by the
-- clock has other windows; its counts must add up, for each bidder, to the same sum.
SELECT bidder, count(*) AS bid_count, date_time // 10000 * 10000 AS start_time, start_time + 10000 AS end_time
FROM bid
GROUP BY ALL
