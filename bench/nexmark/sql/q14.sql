-- Query 14, calculation: bids of a middle price in euros, with the time of the day (UTC) and how often the letter
-- c is in the filling. The letters are counted by a function of the user's in a stream. Hours 7 and 19 are neither
-- day nor night.
SELECT
    auction, bidder, 0.908 * price AS price,
    CASE
        WHEN hour(epoch_ms(date_time)) BETWEEN 8 AND 18 THEN 'dayTime'
        WHEN hour(epoch_ms(date_time)) <= 6 OR hour(epoch_ms(date_time)) >= 20 THEN 'nightTime'
        ELSE 'otherTime'
    END AS bid_time_type,
    date_time, extra, length(extra) - length(replace(extra, 'c', '')) AS c_counts
FROM bid
WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000
