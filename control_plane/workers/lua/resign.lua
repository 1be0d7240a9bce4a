-- Give the leader's lease back, when it is one's own.
--
-- KEYS  1 lease (string: the leader's id)
-- ARGV  1 own id
-- Returns 1 when it was.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
