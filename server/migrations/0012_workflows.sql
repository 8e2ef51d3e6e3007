-- What a run's workflow remembers from step to step beside model and standardiser; NULL where it remembers nothing, as training does.
ALTER TABLE checkpoints ADD COLUMN workflow BLOB;
