-- open.lua: make a deployment's streams and their group, from the first entry on; what is there stays.
-- It is awake then.
-- KEYS 1 queue, 2 front, 3 asleep.  ARGV 1 group.  Returns nothing.  Cost O(1).
for stream = 1, 2 do
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[stream], ARGV[1], '0', 'MKSTREAM')
  if made.err and not string.find(made.err, '^BUSYGROUP') then return made end
end
redis.call('DEL', KEYS[3])
