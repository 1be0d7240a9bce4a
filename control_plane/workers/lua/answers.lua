-- Reads what workers answered about several adapters. Read-only.
--
-- KEYS  ledgers (hashes), one an adapter
-- Returns  for each key its fields and values, in turn

local answers = {}
for i, key in ipairs(KEYS) do answers[i] = redis.call('HGETALL', key) end
return answers
