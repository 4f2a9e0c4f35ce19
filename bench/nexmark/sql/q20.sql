-- Query 20, expand bid with auction: bids with all there is about their auction, where that is of category 10.
--
-- There is no condition on time: a bid may come before its auction, and after it expired. Either side waits for
-- the other without a limit in time. Auctions are never changed, so results are only ever added.
SELECT
    b.auction, b.bidder, b.price, b.channel, b.url, b.date_time AS bid_date_time, b.extra AS bid_extra,
    a.item_name, a.description, a.initial_bid, a.reserve, a.date_time AS auction_date_time, a.expires, a.seller,
    a.category, a.extra AS auction_extra
FROM bid b JOIN auction a ON b.auction = a.id
WHERE a.category = 10
