-- Query 3, local item suggestion: who sells in Oregon, Idaho or California in category 10, and which auctions?
--
-- In a stream an auction may come before its seller: either side waits for the other without a limit in time.
-- Persons and auctions are never changed, so results are only ever added.
SELECT p.name, p.city, p.state, a.id
FROM auction a JOIN person p ON a.seller = p.id
WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')
