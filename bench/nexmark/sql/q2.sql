-- Query 2, selection: auction and price of the bids on every 123rd auction.
SELECT auction, price
FROM bid
WHERE auction % 123 = 0
