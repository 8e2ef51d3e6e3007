-- Somebody with an invite who waits until an operator approves: `key_sha256` is set then, and no other key is taken.

-- When, in seconds since the Unix epoch, and from where.
ALTER TABLE invites ADD COLUMN asked INTEGER;
ALTER TABLE invites ADD COLUMN address TEXT;
-- What the operator said.
ALTER TABLE invites ADD COLUMN verdict TEXT CHECK (verdict IN ('approved', 'refused'));
