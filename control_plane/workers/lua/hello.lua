-- A worker said hello: its stream speaks for it from now on, whatever stream did before.
--
-- KEYS  1 record (hash)  2 ids of all workers (set)  3 changes (stream)  4 what it holds (hash)
-- ARGV  1 worker id  2 session  3 replica  4 body  5 lease in ms  6 retention in ms  7 length of the stream
--       8 instance id
-- Returns the time of this change, in ms.
-- A drain is over when its process has left: the one started in its place takes requests. A cordon stays.
local before = redis.call('HMGET', KEYS[1], 'intent', 'instance')
if before[1] == 'draining' and before[2] and before[2] ~= ARGV[8] then
  redis.call('HDEL', KEYS[1], 'intent')
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'session', ARGV[2], 'replica', ARGV[3], 'body', ARGV[4],
  'instance', ARGV[8],
  'lease_ms', now_ms + ARGV[5], 'report_ms', now_ms)
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('DEL', KEYS[4]) -- not known before its first report
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'worker', ARGV[1], 'what', 'record')
return now_ms
