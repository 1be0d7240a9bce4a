-- Replaces the word that a call began by how it ended, in one step.
--
-- KEYS  1 audit log (stream)
-- ARGV  1 event id of the beginning   2 entries kept in the stream   3… field, value, … of the end
-- Returns  the event id of the end

redis.call('XDEL', KEYS[1], ARGV[1])
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
