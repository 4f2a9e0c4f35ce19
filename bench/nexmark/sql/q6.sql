-- Query 6, average selling price by seller: of the seller's last ten auctions that closed with a winning bid, one
-- row for each time an auction closes, fewer than ten at first. Averages are rounded down to whole cents.
--
-- Auctions close at their expiry; of those of a seller that close in the same millisecond the one with the lower
-- id comes first, so a stream must have all of a millisecond before it takes them in this order. The winning bid
-- is that of query 9. (The text for Flink, which Flink cannot run, orders by the time of the bid and takes eleven
-- rows.)
WITH closed AS (
    SELECT a.id, a.seller, a.expires, max(b.price) AS final
    FROM auction a JOIN bid b ON b.auction = a.id AND b.date_time BETWEEN a.date_time AND a.expires
    GROUP BY ALL
)
SELECT seller, (sum(final) OVER last_ten // count(*) OVER last_ten)::BIGINT AS avg_price, id AS auction, expires
FROM closed
WINDOW last_ten AS (PARTITION BY seller ORDER BY expires, id ROWS BETWEEN 9 PRECEDING AND CURRENT ROW)
