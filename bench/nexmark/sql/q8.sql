-- Query 8, monitor new users: who came and offered an auction within the same 10 seconds? One row a person.
--
-- Windows are fixed, so a person who came just before a window ends has little time. Either side may come first.
SELECT DISTINCT p.id, p.name, p.date_time // 10000 * 10000 AS window_start
FROM person p JOIN auction a ON a.seller = p.id AND a.date_time // 10000 = p.date_time // 10000
