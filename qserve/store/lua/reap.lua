-- reap.lua: forget a replica that holds nothing and whose lease is gone.
-- KEYS 1 queue, 2 front, 3 the replica's lease.  ARGV 1 group, 2 replica.
-- Returns 1 when forgotten, 0 when it still holds calls or still has its lease.  Cost O(1).
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
for stream = 1, 2 do
  local held = redis.pcall('XPENDING', KEYS[stream], ARGV[1], '-', '+', 1, ARGV[2])
  if held.err then -- no group: nothing is held. Anything else leaves it open, and DELCONSUMER would drop what is held.
    if not string.find(held.err, '^NOGROUP') then return held end
  elseif #held > 0 then
    return 0
  end
end
for stream = 1, 2 do
  redis.pcall('XGROUP', 'DELCONSUMER', KEYS[stream], ARGV[1], ARGV[2])
end
return 1
