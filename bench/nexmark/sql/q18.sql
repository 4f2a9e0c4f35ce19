-- Query 18, find last bid: the last bid of every bidder on every auction; of bids at the same time the one that
-- arrived last ("seq", the place in the topic).
--
-- A stream gives a new row at every later bid; this is the last one of every bidder and auction. A bid that
-- arrives after a later one changes nothing.
SELECT auction, bidder, price, channel, url, date_time, extra
FROM bid
QUALIFY row_number() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, seq DESC) = 1
