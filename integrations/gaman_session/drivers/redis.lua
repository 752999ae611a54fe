-- Makes a batch of the driver's calls in Redis; each is atomic.
--
-- ARGV[1] holds the calls as MessagePack: for each its operation, its numbers of KEYS and of further ARGV, and its arguments.
-- Values are in ARGV because a script's MessagePack has no bytes. Stored numbers come as strings, which keep their last digit. The
-- results are one flat array, each after the number of its parts, because Redis sends a nested array in pieces.
--
-- In a Cluster, each command has one call, which touches one key. Elsewhere a session's call also has the key of the index of all,
-- `live`, and touches the set of a former owner, which can't be declared because only the session names it.
--
-- The index and the owners' sets have no TTL, so a policy that evicts only keys with one (volatile-*) evicts sessions and no sets.
-- The time when all sessions of an owner were ended is in the owner's set, as `ended`, or in a session, as `revoked:<owner>`, and is
-- evicted only with it. A tombstone may be evicted early: an absent id takes no write either, but no longer leads a logout to the
-- session's new id.

-- `redis_session.lua` comes before it, and has the functions that read and write one session.

local operations = {}

function operations.load(keys, values, is_large)
    return load(keys[1], is_large)
end

-- Returns what load() does, without the session's own fields.
function operations.look(keys)
    local tombstone = ended_by_everyone(keys[1])
    if tombstone then return tombstone end
    local names = {'ended', 'created', 'expires', 'deadline', 'version', 'size', 'seal', 'owner', 'since', 'note'}
    local found = {}
    for i, value in ipairs(redis.call('HMGET', keys[1], unpack(names))) do
        if value then
            found[#found + 1] = names[i]
            found[#found + 1] = value
        end
    end
    return found
end

-- The third key is the owner's set. It is missing if the session has no owner, or if its id is in the set already.
function operations.create(keys, values, since, token, created, expires, ...)
    local key, live, set = unpack(keys)
    local now = tonumber(created)
    if redis.call('EXISTS', key) == 0 and precedes_ending(key, now, since, now) then return 'REVOKED' end
    if set and redis.call('EXISTS', key) == 0 then
        refuse_if_full()
        if is_revoked(set, now, since) then return 'REVOKED' end
        enter(set, id_of(key), expires, now)
    end
    return store(key, live, values, token, created, expires, ...)
end

function operations.apply(keys, values, now, deadline, max_size, names, deletes)
    local key, live = unpack(keys)
    local state, size, version, expires = find(key, now)
    if state then return state end
    if names[1] then refuse_if_full() end
    local failed, new_size = resize(key, live, now, size, max_size, names, values, deletes)
    return failed or change(key, live, values, now, new_size, version, expires, deadline, names, deletes)
end

function operations.swap(keys, values, now, deadline, max_size, token, name)
    local key, live = unpack(keys)
    local new, old = unpack(values)
    local state, size, version, expires = find(key, now)
    if state then return state end
    if redis.call('HGET', key, 'token') == token then
        confirm(key, 'token', token)
        return 'WRITTEN'
    end
    if redis.call('HGET', key, name) ~= (old or false) then return 'CONFLICT' end
    refuse_if_full()
    local failed, new_size = resize(key, live, now, size, max_size, {name}, {new}, {})
    return failed or change(key, live, {token, new}, now, new_size, version, expires, deadline, {'token', name}, {})
end

-- In a Cluster there is only the old id's key, and the new session comes afterwards. The fourth key is the owner's set, if any.
function operations.rename(keys, values, now, version, new_id, since, ...)
    local key, live, new_key, set = unpack(keys)
    local state = find(key, now)
    if state == 'ENDED' and redis.call('HGET', key, 'successor') == new_id then return 'WRITTEN' end
    if state then return state end
    if redis.call('HGET', key, 'version') ~= version then return 'CONFLICT' end
    refuse_if_full()
    local is_late = set and is_revoked(set, now, since) or precedes_ending(key, now, since)
    if is_late and redis.call('HGET', key, 'since') ~= since then return 'REVOKED' end
    end_session(key, live, now, new_id)
    if not new_key then return 'WRITTEN' end
    local _, _, expires = ...
    if set then enter(set, new_id, expires, now) end
    return store(new_key, live, values, ...)
end

-- Raises the error of a full server before a rename in a Cluster ends the session under its old id.
function operations.room()
    refuse_if_full()
    return 'WRITTEN'
end

-- Returns the successor, if any. With is_successor, an absent session is ended too, because it may be about to be stored.
function operations.destroy(keys, values, now, is_successor)
    local key, live = unpack(keys)
    local state = find(key, now)
    if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
    if not state or is_successor then end_session(key, live, now) end
    return false
end

function operations.set_owner(keys, values, now, since, owner, deadline, max_size, names, deletes)
    local key, live, set = unpack(keys)
    local state, size, version, expires = find(key, now)
    if state then return state end
    if names[1] then refuse_if_full() end
    local before = redis.call('HMGET', key, 'owner', 'since', 'revoked:' .. (owner or ''))
    local revoked = tonumber(before[3] or '')
    if owner and is_recent(revoked, now) and tonumber(since) < revoked then return 'REVOKED' end
    local is_late = set and is_revoked(set, now, since) or owner and precedes_ending(key, now, since)
    if is_late and before[2] ~= since then return 'REVOKED' end
    local failed, new_size = resize(key, live, now, size, max_size, names, values, deletes)
    if failed then return failed end
    if set then enter(set, id_of(key), expires, now) end
    if before[1] ~= owner then leave(key, live, before[1]) end
    return change(key, live, values, now, new_size, version, expires, deadline, names, deletes)
end

-- Only in a Cluster, where the session is in another slot and comes after the set.
function operations.enter(keys, values, now, since, id, expires, is_carried)
    refuse_if_full()
    if is_revoked(keys[1], now, since) and not is_carried then return 'REVOKED' end
    enter(keys[1], id, expires, now)
    return 'WRITTEN'
end

function operations.owned(keys, values, now)
    return redis.call('ZRANGEBYSCORE', keys[1], now, '+inf', 'WITHSCORES')
end

function operations.end_owned(keys, values, now)
    local set = keys[1]
    local instant = math.max(now, last_end(set, now) or now)
    enter(set, 'ended', string.format('%.17g', instant + TOMBSTONE), now)
    return redis.call('ZRANGE', set, 0, -1, 'WITHSCORES')
end

-- Returns 1 if the session was ended, 0 if it has another owner, its successor if it was renamed, and otherwise false.
-- With is_awaited, an absent session is ended too, because it may be about to be stored.
function operations.end_one(keys, values, now, owner, is_awaited)
    local key, live = unpack(keys)
    local state = find(key, now)
    if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
    if state == 'ABSENT' and is_awaited then end_session(key, live, now) end
    if state then return false end
    if redis.call('HGET', key, 'owner') ~= owner then
        -- In a Cluster, a set_owner() may be in flight that gives it to this owner, because the set has its id first.
        local revoked = tonumber(redis.call('HGET', key, 'revoked:' .. owner) or '')
        local instant = math.max(now, is_recent(revoked, now) and revoked or now)
        redis.call('HSET', key, 'revoked:' .. owner, string.format('%.17g', instant))
        return 0
    end
    end_session(key, live, now)
    return 1
end

function operations.leave(keys, values, now, ids)
    for i = 1, #ids, 1000 do redis.call('ZREM', keys[1], unpack(ids, i, math.min(i + 999, #ids))) end
    return false
end

-- Removes a thousand expired members from an index, and returns how many are left.
function operations.tidy(keys, values, now)
    redis.call('PERSIST', keys[1])
    local expired = redis.call('ZCOUNT', keys[1], '-inf', now)
    if expired > 0 then redis.call('ZREMRANGEBYRANK', keys[1], 0, math.min(expired, 1000) - 1) end
    return math.max(expired - 1000, 0)
end

-- The first key is the hash `ending`, and the second one, outside a Cluster, is the index of all.
function operations.end_everyone(keys, values, now)
    local before = redis.call('HMGET', keys[1], 'min_version', 'at')
    local at = tonumber(before[2] or '')
    if not at or at > now + MAX_SKEW or at < now then at = now end
    local min_version = (tonumber(before[1] or '') or 0) + MAX_WRITES
    known = nil
    redis.call('HSET', keys[1], 'min_version', min_version, 'at', string.format('%.17g', at))
    if keys[2] then redis.pcall('UNLINK', keys[2]) end
    return 'WRITTEN'
end

function operations.ending(keys)
    local found = redis.call('HMGET', keys[1], 'min_version', 'at')
    return {found[1] or '0', found[2] or ''}
end

function operations.count(keys, values, now)
    return redis.call('ZCOUNT', keys[1], string.format('(%.17g', now), '+inf')
end

function operations.time()
    local time = redis.call('TIME')
    return string.format('%s.%06d', time[1], time[2])
end

-- Tries each command of the script, on a key of its own that it leaves empty, and returns an error that names a refused one.
function operations.check(keys)
    local key = keys[1]
    local commands = {
        {'DEL', key}, {'HSET', key, 'field', 1}, {'PEXPIRE', key, 1000}, {'EXISTS', key}, {'HGET', key, 'field'},
        {'HMGET', key, 'field'}, {'HGETALL', key}, {'HKEYS', key}, {'HSTRLEN', key, 'field'}, {'HEXISTS', key, 'field'},
        {'HDEL', key, 'field'}, {'DEL', key}, {'UNLINK', key},
        {'ZADD', key, 1, 'member'}, {'PEXPIRE', key, 1000}, {'ZSCORE', key, 'member'}, {'ZCOUNT', key, 0, 1},
        {'PERSIST', key}, {'ZRANGE', key, 0, 0}, {'ZRANGEBYSCORE', key, 0, 1}, {'ZREMRANGEBYSCORE', key, 0, 0},
        {'ZREMRANGEBYRANK', key, 1, 1}, {'ZREM', key, 'member'}, {'SET', key, '', 'XX'},
        {'TIME'}, {'SCAN', 0, 'COUNT', 1}, {'DBSIZE'},
    }
    for _, command in ipairs(commands) do
        local answer = redis.pcall(unpack(command))
        if type(answer) == 'table' and answer.err then
            redis.pcall('DEL', key)
            return {err = 'ERR ' .. command[1] .. ': ' .. answer.err}
        end
    end
    return false
end

-- Before check(), there is no find_room(): check() tries its commands as well, and names a refused one.
local IS_READ = {load = true, look = true, owned = true, count = true, time = true, check = true, ending = true}
local answers, last = {}, 0
local key, value = 0, 1
for _, call in ipairs(cmsgpack.unpack(ARGV[1])) do
    local keys, values = {}, {}
    for i = 1, call[2] do keys[i] = KEYS[key + i] end
    for i = 1, call[3] do values[i] = ARGV[value + i] end
    key, value = key + call[2], value + call[3]
    local operation = call[1]
    -- In a Cluster, a command has one call.
    if type(operation) == 'table' then operation, given = operation[1], {operation[2], operation[3]} end
    if refusal == nil and not IS_READ[operation] then find_room(keys[1]) end
    local is_done, answer = pcall(operations[operation], keys, values, unpack(call, 4))
    if not is_done then
        answer = failure(answer)
    end
    local parts = (type(answer) ~= 'table' or answer.err) and {answer} or answer
    answers[last + 1] = #parts
    last = last + 1
    for i, part in ipairs(parts) do answers[last + i] = part end
    last = last + #parts
end
return answers
