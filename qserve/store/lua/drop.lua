-- drop.lua: remove code that nobody wants any more, unless something has changed since that was found out.
-- KEYS 1 generation, 2.. the keys of the code.  ARGV 1 the generation in which nobody wanted it.
-- Returns 1 when removed, 0 when it is to be looked at again.  Cost O(keys).
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
