-- A worker reported: renew its lease and, when it holds or does something else now, its record.
--
-- KEYS  1 record (hash)  2 changes (stream)
-- ARGV  1 worker id  2 session  3 body; empty: as before  4 lease in ms  5 retention in ms  6 length of the stream
-- Returns the time in ms, or 0 when another stream speaks for the worker.
if redis.call('HGET', KEYS[1], 'session') ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local what = 'lease'
redis.call('HSET', KEYS[1], 'lease_ms', now_ms + ARGV[4], 'report_ms', now_ms)
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'body', ARGV[3])
  what = 'record'
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'worker', ARGV[1], 'what', what, 'lease_ms', ARGV[4])
return now_ms
