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

-- Returns a marker for a large session, which the driver then loads with is_large, by a command of its own.
local function load(key, is_large)
    local size = not is_large and tonumber(redis.call('HGET', key, 'size') or '')
    if size and size > LARGE then return 'LARGE' end
    return redis.call('HGETALL', key)
end

-- In a Cluster each load is a command.
if not ARGV[1] then return load(KEYS[1]) end

-- Writes a value that is there already, so that WAIT covers it. Since Redis 7.2, WAIT covers only the writes of its own connection,
-- and a call that finds its change made has lost the connection that made it.
local function confirm(key, name, value)
    redis.call('HSET', key, name, value)
end

-- Returns why the session isn't there, or nil, its size, version and expiry.
local function find(key, now)
    local found = redis.call('HMGET', key, 'ended', 'deadline', 'expires', 'version', 'size')
    local deadline, version, size = tonumber(found[2] or ''), tonumber(found[4] or ''), tonumber(found[5] or '')
    if not deadline or deadline <= now then return 'ABSENT' end
    if found[1] then
        confirm(key, 'ended', found[1])
        return 'ENDED'
    end
    local expires = tonumber(found[3] or '')
    if not expires or not (deadline <= expires and expires < YEAR_10000) then return 'ABSENT' end
    -- Neither infinity nor NaN is whole.
    if not version or version % 1 ~= 0 or not size or size % 1 ~= 0 then return 'ABSENT' end
    return nil, size, version, found[3]
end

-- The error of a full server, or false; nil until a call of the batch may write.
local refusal

-- A full Redis checks only the first write of a script, and accepts one that can't take memory. So a batch first tries one that
-- could, and changes nothing. If it is refused, one that can't lets logouts pass, and calls that store something raise the refusal.
local function find_room(key)
    local answer = redis.pcall('SET', key, '', redis.call('EXISTS', key) == 1 and 'NX' or 'XX')
    refusal = type(answer) == 'table' and answer.err and string.match(answer.err, '%u%u%u+ .*') or false
    if refusal then redis.pcall('HDEL', key, '') end
end

local function refuse_if_full()
    if refusal then error({err = refusal}) end
end

local function id_of(key) return string.sub(key, -64) end

-- Redis refuses a time that is too far ahead.
local function expire(key, now, deadline)
    redis.call('PEXPIRE', key, math.ceil((math.min(tonumber(deadline), YEAR_10000) - now) * 1000))
end

-- Sets *names* to *values*, and the fields that follow in pairs.
local function set_fields(key, names, values, ...)
    for i = 2, #names do redis.call('HSET', key, names[i], values[i]) end
    if names[1] then
        redis.call('HSET', key, names[1], values[1], ...)
    else
        redis.call('HSET', key, ...)
    end
end

-- The names of the session's own fields begin with a colon, and only these count.
local function is_own(name) return string.byte(name) == 58 end

local function stored_size(key, name)
    local length = redis.call('HSTRLEN', key, name)
    -- The length is 0 for a missing field, too.
    return (length > 0 or redis.call('HEXISTS', key, name) == 1) and #name + length or 0
end

-- In a Cluster the owner's set is on another server, and owned() removes the member.
local function leave(key, live, owner)
    if live and owner then redis.pcall('ZREM', string.sub(key, 1, -65) .. 'owner:' .. owner, id_of(key)) end
end

-- Replaces the hash by a tombstone.
local function end_session(key, live, now, successor)
    local deadline = string.format('%.17g', now + TOMBSTONE)
    local names = {}
    if live then
        leave(key, live, redis.call('HGET', key, 'owner'))
        redis.pcall('ZREM', live, id_of(key))
        redis.call('DEL', key)
    else
        -- While its slot moves, Redis would look for a key that is absent for an instant on the other server.
        names = redis.call('HKEYS', key)
    end
    redis.call('HSET', key, 'ended', 1, 'deadline', deadline)
    if successor then redis.call('HSET', key, 'successor', successor) end
    for _, name in ipairs(names) do
        if name ~= 'ended' and name ~= 'deadline' and name ~= 'successor' then redis.call('HDEL', key, name) end
    end
    expire(key, now, deadline)
end

-- Returns why a change isn't made, or nil and the size of the session after it. A session without fields is ended.
local function resize(key, live, now, size, max_size, names, values, deletes)
    local new = size
    for i, name in ipairs(names) do
        if is_own(name) then new = new + #name + #values[i] - stored_size(key, name) end
    end
    for _, name in ipairs(deletes) do
        if is_own(name) then new = new - stored_size(key, name) end
    end
    if new > max_size and new > size then return 'TOO_LARGE' end
    if new > 0 then return nil, new end
    end_session(key, live, now)
    return 'EMPTIED'
end

-- A time that is further ahead was stored before the clock was set back.
local function is_recent(instant, now)
    return instant and instant <= now + MAX_SKEW and now < instant + TOMBSTONE
end

-- Returns when all sessions of the owner were ended, or false if that is a minute ago. Raises an error if the key holds no set,
-- before anything is changed: a session that isn't in its owner's set can't be found there.
local function last_end(set, now)
    local score = redis.pcall('ZSCORE', set, 'ended')
    if type(score) == 'table' then error({err = "ERR the key of an owner's set holds something else"}) end
    local instant = score and tonumber(score) - TOMBSTONE
    return is_recent(instant, now) and instant
end

local function is_revoked(set, now, since)
    local instant = last_end(set, now)
    return instant and tonumber(since) < instant
end

-- Expired members leave afterwards, so that the set is never absent for an instant. A set of an earlier version has a TTL.
local function enter(set, id, score, now)
    if redis.call('ZADD', set, 'CH', score, id) == 0 then
        -- WAIT covers only changes; see confirm().
        redis.call('ZADD', set, 0, id)
        redis.call('ZADD', set, score, id)
    end
    redis.call('PERSIST', set)
    redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
end

local function keep_live(key, live, now, deadline)
    expire(key, now, deadline)
    -- A broken index costs a wrong count, and no session.
    if live then redis.pcall('ZADD', live, deadline, id_of(key)) end
end

local function store(key, live, values, token, created, expires, deadline, names)
    if redis.call('EXISTS', key) == 1 then
        if redis.call('HGET', key, 'token') ~= token then return 'CONFLICT' end
        confirm(key, 'token', token)
        return 'WRITTEN'
    end
    refuse_if_full()
    local size = 0
    for i, name in ipairs(names) do
        if is_own(name) then size = size + #name + #values[i] end
    end
    local times = {'created', created, 'expires', expires, 'deadline', deadline}
    set_fields(key, names, values, 'token', token, 'version', 0, 'size', size, unpack(times))
    keep_live(key, live, tonumber(created), deadline)
    return 'WRITTEN'
end

local function change(key, live, values, now, size, version, expires, deadline, names, deletes)
    if deadline and tonumber(deadline) > tonumber(expires) then deadline = expires end
    if deadline then
        set_fields(key, names, values, 'version', version + 1, 'size', size, 'deadline', deadline)
        keep_live(key, live, now, deadline)
    else
        set_fields(key, names, values, 'version', version + 1, 'size', size)
    end
    for _, name in ipairs(deletes) do redis.call('HDEL', key, name) end
    return 'WRITTEN'
end

local operations = {}

function operations.load(keys, values, is_large)
    return load(keys[1], is_large)
end

-- Returns what load() does, without the session's own fields.
function operations.look(keys)
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
    if set and is_revoked(set, now, since) and redis.call('HGET', key, 'since') ~= since then return 'REVOKED' end
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
    if set and is_revoked(set, now, since) and before[2] ~= since then return 'REVOKED' end
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
        {'HDEL', key, 'field'}, {'DEL', key},
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
local IS_READ = {load = true, look = true, owned = true, count = true, time = true, check = true}
local answers, last = {}, 0
local key, value = 0, 1
for _, call in ipairs(cmsgpack.unpack(ARGV[1])) do
    local keys, values = {}, {}
    for i = 1, call[2] do keys[i] = KEYS[key + i] end
    for i = 1, call[3] do values[i] = ARGV[value + i] end
    key, value = key + call[2], value + call[3]
    if refusal == nil and not IS_READ[call[1]] then find_room(keys[1]) end
    local is_done, answer = pcall(operations[call[1]], keys, values, unpack(call, 4))
    if not is_done then
        -- The code has to come first, where the client looks for it.
        local text = type(answer) == 'table' and answer.err or answer
        answer = {err = string.match(text, '%u%u%u+ .*') or text}
    end
    local parts = (type(answer) ~= 'table' or answer.err) and {answer} or answer
    answers[last + 1] = #parts
    last = last + 1
    for i, part in ipairs(parts) do answers[last + i] = part end
    last = last + #parts
end
return answers
