-- Query 17, auction statistics report: bids and prices of each auction and day (UTC). Averages are rounded down to
-- whole cents.
--
-- A stream gives a new row at every change; this is the last one of every auction and day.
SELECT
    auction,
    strftime(epoch_ms(date_time), '%Y-%m-%d') AS day,
    count(*) AS total_bids,
    count(*) FILTER (price < 10000) AS rank1_bids,
    count(*) FILTER (price >= 10000 AND price < 1000000) AS rank2_bids,
    count(*) FILTER (price >= 1000000) AS rank3_bids,
    min(price) AS min_price,
    max(price) AS max_price,
    (sum(price) // count(*))::BIGINT AS avg_price,
    sum(price)::BIGINT AS sum_price
FROM bid
GROUP BY auction, day
