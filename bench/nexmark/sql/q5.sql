-- Query 5, hot items: which auctions had the most bids in the last 10 seconds, every 2 seconds? All of those with
-- the same number of bids. Windows begin at multiples of 2 seconds since the epoch; the first ones begin before
-- the first bid.
--
-- The maximum is over all auctions: a stream counts per auction and window first, then compares the counts of a
-- window in one place. The window is part of the result here, so that the results of windows can be told apart.
WITH counted AS (
    SELECT auction, date_time // 2000 * 2000 - 2000 * back AS window_start, count(*) AS num
    FROM bid, range(5) AS hops(back)
    GROUP BY ALL
)
SELECT auction, num, window_start, window_start + 10000 AS window_end
FROM counted
QUALIFY num = max(num) OVER (PARTITION BY window_start)
