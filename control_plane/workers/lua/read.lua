-- Read one worker's record with the time on the store's clock.
--
-- KEYS  1 record (hash)  2 what it holds (hash)
-- Returns {time in ms, session, replica, body, intent, lease_ms, report_ms, version, {what is held}};
-- fields that are not there are false.
local time = redis.call('TIME')
local record = redis.call('HMGET', KEYS[1],
  'session', 'replica', 'body', 'intent', 'lease_ms', 'report_ms', 'version')
table.insert(record, 1, time[1] * 1000 + math.floor(time[2] / 1000))
table.insert(record, redis.call('HVALS', KEYS[2]))
return record
