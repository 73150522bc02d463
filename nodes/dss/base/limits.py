"""Every bound of the system, each with its reason. Nothing else defines a maximum.

Units stand last in the name. What a user can run into is listed in docs/limits.md.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- what a client may send (docs/contract: beyond is 413 or 422 and says the limit) ---
NAME_BYTES_MAX: Final = 256
"""Lock, queue and cache names: long enough for a path-like key, short enough to hold millions."""
BODY_BYTES_MAX: Final = 1 * MIB
"""An HTTP request body and one queue message: larger blobs belong in an object store."""
VALUE_BYTES_MAX: Final = 1 * MIB
"""One cached value: it travels in one peer frame and one main-memory write."""
BATCH_ITEMS_MAX: Final = 1_000
"""Items in one batch: bounds the time one log entry takes to apply."""
SESSION_TTL_MS_MIN: Final = 100
SESSION_TTL_MS_MAX: Final = 24 * 3_600_000
"""A dead client's locks come free within a day."""
SESSION_TTL_MS_DEFAULT: Final = 10_000
WAIT_MS_MAX: Final = 30_000
"""Long polls and lock waits: below the usual 60 s time-outs of proxies."""
STREAM_MESSAGE_BYTES_MAX: Final = 4 * MIB
"""One WebSocket message of the stream protocol (a batch of requests)."""
STREAM_IN_FLIGHT_MAX: Final = 4_096
"""Unanswered requests of one stream connection: beyond is answered 429."""

# --- Raft ---
ENTRY_BYTES_MAX: Final = 4 * MIB
"""One log entry: all commands that were pending together; a larger batch is cut in two."""
APPEND_BYTES_MAX: Final = 4 * MIB
"""Entries of one append message: keeps the peer link responsive for heartbeats."""
LAZY_BYTES_MAX: Final = 64 * KIB
"""Entries that gather for a voter whom the quorum does not need: more leave before LAZY_MS."""
LAZY_MS: Final = 10
"""For so long they gather at most; and for so long a voter that the quorum needs may be silent
before everybody gets everything at once. 5 gains half as much, 20 no more."""
INFLIGHT_APPENDS_MAX: Final = 64
"""Unanswered append messages per follower: covers a round trip at full speed."""
INFLIGHT_BYTES_MAX: Final = 16 * MIB
"""Unanswered entry bytes per follower: a quarter of the peer's outbox, so many groups fit."""
APPLY_ENTRIES_MAX: Final = 4_096
"""Entries handed to the state machine and not yet applied: replay after a restart yields."""
READS_PENDING_MAX: Final = 65_536
"""Reads waiting for their ReadIndex round in one group: beyond, they fail at once."""
UNCOMMITTED_BYTES_MAX: Final = 64 * MIB
"""Uncommitted payload on a leader: beyond, proposals are refused with 503 `overloaded`."""
LOG_TAIL_ENTRIES: Final = 1_000
"""Entries kept behind a snapshot, so that a follower a little behind needs no snapshot."""
SNAPSHOT_CHUNK_BYTES: Final = 512 * KIB
"""One piece of a snapshot on the wire: small enough not to delay heartbeats."""
SNAPSHOT_EVERY_ENTRIES: Final = 50_000
SNAPSHOT_EVERY_BYTES: Final = 32 * MIB
"""A group is snapshotted after this much log since its last snapshot."""
BACKOFF_MS_MAX: Final = 60_000
"""How long a member may be asked not to campaign: it must come back if its asker does not."""
SNAPSHOT_ALIGN_ENTRIES: Final = 1_024
"""Snapshots are taken at multiples of this index, so that all nodes take the same ones: a transfer
then goes on where it was after a change of leaders. Entries are applied in steps up to these."""
SNAPSHOT_KEEP_MS: Final = 60_000
"""A snapshot that is being sent stays, although there are newer ones, until nothing of it has
arrived for so long: a follower that is only slow, or briefly away, goes on where it was."""
TRANSFER_LOG_BYTES_MAX: Final = 128 * MIB
"""Log kept in memory behind a snapshot that is being sent, so that its receiver needs no other one
afterwards: four times what makes the next snapshot due."""
SNAPSHOT_PIECE_ROWS: Final = 500
"""Rows of a machine's state encoded in one go: about 0.5 ms."""
SNAPSHOT_INLINE_ROWS: Final = 2_000
"""A machine up to this size is encoded on the spot: less than applying would pause otherwise."""
STORY_LINES_MAX: Final = 64
"""Recent role changes a core keeps, to be printed with a failure."""

# --- storage ---
WAL_SEGMENT_BYTES: Final = 16 * MIB
"""Preallocated, so that fdatasync has no metadata to write."""
WAL_SPARES_MAX: Final = 2
"""Reclaimed segments kept for reuse: one to roll into, one while the next is prepared."""
SNAPSHOT_BLOCK_BYTES: Final = 64 * KIB
"""One checksum each: a piece can be read and checked without reading the whole snapshot."""
SNAPSHOT_BYTES_MAX: Final = 2 * 1024 * MIB
"""One group's snapshot: it is built and restored in memory."""

# --- peer transport ---
FRAME_BYTES_MAX: Final = 16 * MIB
"""One peer frame: a batch of messages; larger is a broken or hostile peer."""
PEER_OUTBOX_BYTES_MAX: Final = 64 * MIB
"""Unsent bytes to one peer: beyond, new messages are dropped (Raft repeats them)."""
PEER_CALLS_MAX: Final = 65_536
"""Unanswered calls to one peer."""
FORWARD_HOPS_MAX: Final = 2
"""A request is forwarded at most this often: guards against two nodes pointing at each other."""

# --- state machines ---
LOCKS_MAX: Final = 1_000_000
"""All of them are in the memory of every lock node, and in each snapshot."""
SESSIONS_MAX: Final = 100_000
"""Each is in the memory of every lock node; one per process, not one per lock, is enough."""
WAITERS_PER_LOCK_MAX: Final = 10_000
"""Keeps one popular lock from using up the room for all waiters (WAITERS_MAX)."""
SEMAPHORE_PERMITS_MAX: Final = 10_000
"""A semaphore's holders are kept one by one."""
LIST_ITEMS_MAX: Final = 1_000
LIST_STEP_NAMES: Final = 1_000
"""Names that a list looks at in one go: about 0.3 ms."""
LIST_STEP_ITEMS: Final = 100
"""Items that it describes in one go."""
QUEUES_MAX: Final = 1_000
"""Every partition keeps the settings of every queue."""
PARTITIONS_MAX: Final = 256
"""Each is a Raft group on three nodes, with its own heartbeats."""
NODES_PER_ROLE_MAX: Final = 9
"""A write waits for a majority: more voters make it slower, not safer."""

# --- configuration ---
PEER_LIST_CHARS_MAX: Final = 64 * KIB
"""One peer list: nine entries need 1 KiB; beyond is a mistake, and the kernel's limit is near."""
AUTH_TOKENS_MAX: Final = 100
"""Every request is compared with each of them, so that the time taken tells nothing."""
SETTING_FILE_POLL_S: Final = 2.0
"""How often files with tokens and the cluster secret are looked at for a change."""
SETTING_FILE_BYTES_MAX: Final = 64 * KIB
"""A file named by `X_FILE`: one value; guards against naming a device or a log."""
ENV_FILE_BYTES_MAX: Final = 1 * MIB
"""A compose `.env` file."""

# --- `dss up` ---
RESTART_DELAY_MS_MIN: Final = 500
"""A node that died is started again after this long; doubled each time it dies again."""
RESTART_DELAY_MS_MAX: Final = 30_000
"""The longest wait between restarts: a fixed cause is noticed within half a minute."""
RESTART_STEADY_MS: Final = 30_000
"""A node that ran this long counts as healthy: the next restart waits the minimum again."""
STOP_GRACE_MS: Final = 10_000
"""From SIGTERM to SIGKILL: leadership transfer and a last fsync take far less."""
LOCAL_LOG_BYTES_MAX: Final = 16 * MIB
"""A node's log file is put aside as `.1` at a start once it is larger."""
READY_NOTICE_MS: Final = 20_000
"""After this long `dss up` says which nodes are not ready and why, and goes on waiting."""

# --- locks ---
TOKEN_MAX: Final = 2**53 - 1
"""The largest integer that JSON numbers (IEEE doubles) carry exactly."""
LABEL_CHARS_MAX: Final = 128
"""A session's id or name, an owner: for people and keys, not for data."""
LIST_ITEMS_DEFAULT: Final = 100
"""Items of a list when the request names no `limit`: one screen or two."""
SESSION_HOLDS_MAX: Final = 10_000
"""Locks and waits (each) of one session: its end releases all of them in one step."""
WAITERS_MAX: Final = 100_000
"""Waiters of all locks together: each costs about half a KiB on every lock node."""
EXPIRY_BATCH_MAX: Final = 500
"""Sessions, and waits, ended by one log entry: keeps that entry's apply in milliseconds."""
EXPIRY_RETRY_MS: Final = 1_000
"""An expiry that was proposed but has not come back is proposed again after this time."""
WAITERS_SHOWN_MAX: Final = 100
"""Waiters listed by a description of a lock, and looked at to tell a place in the line."""
PRIORITY_MAX: Final = 9
"""The most urgent waiter: it passes those that came up to nine times PRIORITY_STEP_MS before it."""
PRIORITY_STEP_MS: Final = 1_000
"""What one level of priority is worth: as though the waiter had come so much earlier."""
LOCKS_TOGETHER_MAX: Final = 100
"""Locks acquired all or nothing by one request: its waiter stands in each one's line."""
DEADLOCK_EDGES_MAX: Final = 10_000
"""Edges of the wait-for graph looked at for one wait: about 10 ms; beyond, time-outs decide."""
DEADLOCK_EDGES_ENTRY_MAX: Final = 50_000
"""Those of one log entry together, however many waits begin in it: nobody's requests may hold the
others' up. What is not looked at then is looked at when its client asks again."""
PLACES_KEPT_MAX: Final = 64
"""Places in lines that are kept for one session: of deadlocks' victims, and of waits at a node
that stopped. The oldest goes first."""
PLACE_KEPT_MS: Final = 30_000
"""For so long, of log time: whoever was told to ask again does so at once, or after the longest
wait for something else (WAIT_MS_MAX); later it would only pass those who came since."""
PLACE_BYTES: Final = 512
"""What a wait, or its kept place, counts for beside its texts."""
PLACE_ITEM_BYTES: Final = 128
"""What each lock that it stands at counts for beside its name."""
WAITS_BYTES_MAX: Final = 128 * MIB
"""All waits and kept places together: WAITERS_MAX of them with names and owners of 600 bytes;
beyond is 429. Requests for many locks with long names take 40 KiB each."""
HOLDS_MAX: Final = 2 * LOCKS_MAX
"""Holders of all locks together: of shared locks and semaphores there are more than locks."""
REPEATS_ANSWERED_MAX: Final = 8
"""Questions with one number or key that wait together, at whichever nodes, and get one answer:
beyond, the oldest is told that it was superseded."""
CONFIRM_MS_MAX: Final = 30_000
"""`confirm_ms`: a grant that nobody confirms holds the others up for so long."""
SEQUENCE_WINDOW: Final = 1_024
"""Sequenced commands of one session whose answers are kept until it has acknowledged them."""
ANSWER_BYTES: Final = 128
"""What an ordinary kept answer counts for: a grant or a release in a snapshot, rounded up."""
ANSWER_ITEM_BYTES: Final = 48
"""What each item of a longer kept answer counts for beside its texts: keys and numbers."""
SESSION_ANSWERS_BYTES_MAX: Final = 1 * MIB
"""Kept answers of one session: its whole window of ordinary ones, or 30 grants of 100 locks with
the longest names."""
ANSWERS_BYTES_MAX: Final = 128 * MIB
"""Kept answers of all sessions: ten ordinary ones for each of SESSIONS_MAX; a sixteenth of what a
snapshot may hold."""
IDEMPOTENCY_KEYS_BYTES_MAX: Final = 128 * MIB
"""Idempotency keys and their answers: IDEMPOTENCY_KEYS_MAX with 1 KiB each; beyond is 429."""
IDEMPOTENCY_KEYS_MAX: Final = 100_000
"""Idempotency keys remembered: each costs about half a KiB on every lock node; beyond is 429."""
IDEMPOTENCY_KEEP_MS: Final = 600_000
"""How long an `Idempotency-Key` is remembered: longer than any sensible client goes on trying."""
HISTORY_PER_LOCK_MAX: Final = 20
"""Ended holds of one lock that its history shows."""
HISTORY_MAX: Final = 10_000
"""Ended holds of all locks together: they are in every snapshot."""
EVENTS_MAX: Final = 10_000
"""Lock events that a node keeps for clients that come back: about 2 MB."""
STREAM_WATCHES_MAX: Final = 10_000
"""Sessions of one stream whose losses it is told of: the rest find out by their keepalive."""
EVENT_STREAMS_MAX: Final = 1_000
"""`locks:events` connections and streams' `events` of one node: each is looked at after every
change of a lock."""
STREAM_EVENTS_MAX: Final = 16
"""Subscriptions to events on one stream: a prefix says which locks, so few are needed."""
STREAM_EVENTS_UNREAD_BYTES: Final = 1 * MIB
"""While a client has left more than this unread, its events wait where they are kept anyway. A
sixteenth of STREAM_OUTBOX_BYTES_MAX: who only catches up is not cut off."""
EVENTS_COMMENT_S: Final = 10.0
"""A comment on a quiet event stream this often: proxies cut what is silent for 15 s or more."""
WAITS_LEADERLESS_MS: Final = 5_000
"""A request that waits in a group is kept open for so long without any leader: it needs none but
to end, and the next one knows it. Longer than elections take, shorter than a client's patience."""
GONE_CLIENT_MS: Final = 2_000
"""A client that vanished while it waited for a lock has this long to come back to its place."""

# --- streams ---
STREAM_OUTBOX_BYTES_MAX: Final = 16 * MIB
"""Answers that a stream client has not read yet: beyond, it is disconnected, not waited for."""
STREAM_IN_FLIGHT_BYTES_MAX: Final = 64 * MIB
"""Bytes of the unanswered requests of one queue or cache stream: beyond is answered 429. As much as
a leader takes uncommitted, and far more than a client with small messages ever has under way."""
STREAM_HEARTBEAT_S: Final = 10.0
"""A WebSocket ping this often: finds clients that vanished without a FIN, and keeps proxies,
which cut what is idle for 15 s or more, from closing a stream that only waits."""
STREAM_CLOSE_S: Final = 2.0
"""How long a closing stream waits for the client's half of the closing handshake."""

# --- cache ---
CACHE_TTL_MS_MAX: Final = 24 * 3_600_000
"""Longer is a value without an end: leave `ttl_ms` out."""
CACHE_TTL_MS_MIN: Final = 100
"""A cached value's life: shorter than 100 ms is below what leases can honour."""
CACHE_REQUEST_MS: Final = 5_000
"""A request to a key's home is given up after this: well above one lease plus one fsync."""
CACHE_LINE_QUEUE_MAX: Final = 1_024
"""Requests that wait for one key, at its home and at each node: beyond is 429."""
CACHE_PENDING_MAX: Final = 16_384
"""Requests of one node that its peers' homes have not answered yet: beyond is 429."""
CACHE_DIRECTORY_LINES_MAX: Final = 1_000_000
"""Lines a home keeps track of: beyond, values are answered but may not be kept as copies."""
CACHE_LINE_OVERHEAD_BYTES: Final = 400
"""What one cached line costs beside its key and value (measured; counted against capacity)."""
CACHE_CAST_BYTES_MAX: Final = 4 * MIB
"""Coherence messages of one peer frame: larger batches are cut, so that renewals get through."""
MEMORY_BATCH_OPS_MAX: Final = 512
"""Main-memory operations of one transaction or pipeline: bounds the latency of the first."""
MEMORY_TIMEOUT_MS: Final = 2_000
"""A main-memory batch is given up after this: its writes are then of unknown outcome."""

# --- queues ---
VISIBILITY_MS_MAX: Final = 12 * 3_600_000
"""A message's lease, and a delay: SQS's bound, longer than any sensible job without an extend."""
VISIBILITY_MS_DEFAULT: Final = 30_000
"""What SQS users expect: a short job ends within it, a crashed one comes again soon."""
QUEUE_DELIVERIES_MAX: Final = 1_000
"""The largest `max_deliveries`: more is a poison message that nobody looks at."""
QUEUE_LENGTH_MAX: Final = 10_000_000
"""The largest `max_length` of a queue over all partitions."""
PARTITION_MESSAGES_MAX: Final = 500_000
"""Messages of all queues kept in one partition: about 150 MB of records."""
PARTITION_BYTES_MAX: Final = 128 * MIB
"""Bodies of one partition, which are in memory and in its snapshot; beyond is `queue_full`."""
RECEIVE_BYTES_MAX: Final = 8 * MIB
"""Bodies that one receive takes together: its answer is one peer frame."""
HEADERS_MAX: Final = 32
"""Headers of a message: for tracing and types; data belongs in the body."""
HEADER_CHARS_MAX: Final = 1_024
"""A header's name, and its value."""
DUE_ITEMS_MAX: Final = 1_000
"""Leases and delays ended by one log entry (more only when they end in the same ms)."""
INTERESTS_MAX: Final = 10_000
"""Long polls of one node, and queues that one other node waits for."""
TAKE_PARTITIONS_MAX: Final = 8
"""Partitions that one receive takes messages from: with a body of the largest size in each, the
answer still fits RECEIVE_BYTES_MAX."""
FORWARDED_READ_RETRY_MS: Final = 25
"""Pause before a read asks again for a leader: a fraction of an election."""
