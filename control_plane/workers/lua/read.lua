-- Read one worker's record with the time on the store's clock.
--
-- KEYS  1 record (hash)
-- Returns {time in ms, session, replica, body, intent, lease_ms, report_ms}; fields that are not there are false.
local time = redis.call('TIME')
local record = redis.call('HMGET', KEYS[1], 'session', 'replica', 'body', 'intent', 'lease_ms', 'report_ms')
table.insert(record, 1, time[1] * 1000 + math.floor(time[2] / 1000))
return record
