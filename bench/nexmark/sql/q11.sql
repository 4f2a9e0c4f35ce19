-- Query 11, user sessions: how many bids did a bidder make in each period without a pause of 10 seconds?
--
-- Bids less than 10 seconds apart are in one session, which ends 10 seconds after its last bid. (Flink also joins
-- bids that are exactly 10 seconds apart.)
WITH paused AS (
    SELECT bidder, date_time,
        coalesce(date_time - lag(date_time) OVER by_time >= 10000, true) AS begins
    FROM bid
    WINDOW by_time AS (PARTITION BY bidder ORDER BY date_time)
), numbered AS (
    SELECT bidder, date_time,
        sum(begins::INTEGER) OVER (PARTITION BY bidder ORDER BY date_time ROWS UNBOUNDED PRECEDING) AS number
    FROM paused
)
SELECT bidder, count(*) AS bid_count, min(date_time) AS start_time, max(date_time) + 10000 AS end_time
FROM numbered
GROUP BY bidder, number
