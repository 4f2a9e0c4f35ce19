-- Query 4, average price for a category: of the auctions' winning bids, the highest ones between start and expiry,
-- both included. Auctions without a bid count for nothing. Averages are rounded down to whole cents.
--
-- A stream gives a new average whenever an auction closes (or whenever its highest bid changes); this is the last
-- one of every category. At the end of the input auctions that are still open are closed.
SELECT category, (sum(final) // count(*))::BIGINT AS final
FROM (
    SELECT a.id, a.category, max(b.price) AS final
    FROM auction a JOIN bid b ON b.auction = a.id AND b.date_time BETWEEN a.date_time AND a.expires
    GROUP BY a.id, a.category
)
GROUP BY category
