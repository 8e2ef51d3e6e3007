-- What keeps the ledger append-only in SQLite.

CREATE TRIGGER ledger_never_changes BEFORE UPDATE ON ledger
BEGIN
    SELECT RAISE (ABORT, 'the ledger is append-only');
END;

CREATE TRIGGER ledger_never_shrinks BEFORE DELETE ON ledger
BEGIN
    SELECT RAISE (ABORT, 'the ledger is append-only');
END;
