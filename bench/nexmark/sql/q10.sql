-- Query 10, log to files: every bid with the day and the minute (UTC) that name the partition it is written to.
--
-- A stream writes files and commits a partition when its minute is over; what must be the same are the rows of
-- each partition, not how they are divided into files.
SELECT
    auction, bidder, price, date_time, extra,
    strftime(epoch_ms(date_time), '%Y-%m-%d') AS dt, strftime(epoch_ms(date_time), '%H:%M') AS hm
FROM bid
