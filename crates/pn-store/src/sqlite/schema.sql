CREATE TABLE IF NOT EXISTS store (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    revision INTEGER NOT NULL,
    -- The last revision whose changes are forgotten.
    compacted INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO store VALUES (1, 0, 0);
CREATE TABLE IF NOT EXISTS entry (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL,
    lease INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_of_lease ON entry (lease) WHERE lease IS NOT NULL;
CREATE TABLE IF NOT EXISTS change (
    revision INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB,
    lease INTEGER,
    before_value BLOB,
    before_revision INTEGER,
    before_lease INTEGER,
    PRIMARY KEY (revision, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS change_of_key ON change (key, revision);
CREATE TABLE IF NOT EXISTS lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ttl_ms INTEGER NOT NULL,
    ends_ms INTEGER NOT NULL
) STRICT;
