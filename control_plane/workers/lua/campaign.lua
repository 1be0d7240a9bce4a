-- Take or renew the leader's lease. The fencing token grows with every new term.
--
-- KEYS  1 lease (string: the leader's id)  2 fencing token (integer)
-- ARGV  1 own id  2 lease in ms
-- Returns {1 when own id leads now, else 0, the present token}.
local leader = redis.call('GET', KEYS[1])
if leader == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif not leader then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  redis.call('INCR', KEYS[2])
  leader = ARGV[1]
end
return {leader == ARGV[1] and 1 or 0, tonumber(redis.call('GET', KEYS[2])) or 0}
