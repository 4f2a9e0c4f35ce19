-- Query 9, winning bids: the highest bid on every auction between start and expiry, both included; of equal ones
-- the earlier, then the one that arrived first ("seq", the place in the topic).
--
-- A stream knows the winner when the auction closes; this is one row for each auction that had a bid. All bids on
-- an auction are in one partition, in the order of "seq". Bids may arrive before their auction, even if they were
-- made after it.
SELECT
    a.id, a.item_name, a.description, a.initial_bid, a.reserve, a.date_time, a.expires, a.seller, a.category, a.extra,
    b.auction, b.bidder, b.price, b.date_time AS bid_date_time, b.extra AS bid_extra
FROM auction a JOIN bid b ON b.auction = a.id AND b.date_time BETWEEN a.date_time AND a.expires
QUALIFY row_number() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.seq) = 1
