CREATE TABLE admissions (
	state VARCHAR(16) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	number BIGINT NOT NULL,
	CONSTRAINT pk_admissions PRIMARY KEY (state, owner)
);

CREATE TABLE api_keys (
	id VARCHAR(32) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	name VARCHAR(64) NOT NULL,
	scopes JSON NOT NULL,
	secret_sha256 VARCHAR(64) NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	created_by VARCHAR(128) NOT NULL,
	expires_at TIMESTAMP WITH TIME ZONE,
	revoked_at TIMESTAMP WITH TIME ZONE,
	last_used_at TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_api_keys PRIMARY KEY (id)
);

CREATE INDEX ix_api_keys_owner ON api_keys (owner);

CREATE TABLE backup_outbox (
	sequence BIGSERIAL NOT NULL,
	kind VARCHAR(16) NOT NULL,
	name VARCHAR(64) NOT NULL,
	CONSTRAINT pk_backup_outbox PRIMARY KEY (sequence)
);

CREATE TABLE compatibility (
	oldest VARCHAR(32) NOT NULL,
	sha256 VARCHAR(64) NOT NULL,
	CONSTRAINT pk_compatibility PRIMARY KEY (oldest)
);

CREATE TABLE drivers (
	id INTEGER NOT NULL,
	number INTEGER NOT NULL,
	began_at TIMESTAMP WITH TIME ZONE NOT NULL,
	launched_at TIMESTAMP WITH TIME ZONE,
	ended_at TIMESTAMP WITH TIME ZONE,
	failures INTEGER NOT NULL,
	unavailable_since TIMESTAMP WITH TIME ZONE,
	message TEXT,
	CONSTRAINT pk_drivers PRIMARY KEY (id)
);

CREATE TABLE event_positions (
	id SERIAL NOT NULL,
	newest BIGINT NOT NULL,
	CONSTRAINT pk_event_positions PRIMARY KEY (id)
);

CREATE TABLE events (
	sequence BIGSERIAL NOT NULL,
	position BIGINT,
	owner VARCHAR(64) NOT NULL,
	kind VARCHAR(32) NOT NULL,
	model VARCHAR(48) NOT NULL,
	dataset VARCHAR(32),
	job VARCHAR(32),
	version INTEGER,
	data JSON NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	CONSTRAINT pk_events PRIMARY KEY (sequence),
	CONSTRAINT uq_events_position UNIQUE (position)
);

CREATE INDEX ix_events_created_at ON events (created_at);

CREATE INDEX ix_events_job_position ON events (job, position);

CREATE INDEX ix_events_model_position ON events (model, position);

CREATE INDEX ix_events_owner_position ON events (owner, position);

CREATE TABLE idempotency (
	owner VARCHAR(64) NOT NULL,
	key VARCHAR(255) NOT NULL,
	route VARCHAR(255) NOT NULL,
	fingerprint VARCHAR(64) NOT NULL,
	status INTEGER NOT NULL,
	location VARCHAR(255),
	body JSON NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	CONSTRAINT pk_idempotency PRIMARY KEY (owner, key, route)
);

CREATE INDEX ix_idempotency_created_at ON idempotency (created_at);

CREATE TABLE leases (
	name VARCHAR(64) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	until TIMESTAMP WITH TIME ZONE NOT NULL,
	CONSTRAINT pk_leases PRIMARY KEY (name)
);

CREATE TABLE models (
	name VARCHAR(48) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	spec JSON NOT NULL,
	gate JSON NOT NULL,
	gate_revision INTEGER NOT NULL,
	head INTEGER NOT NULL,
	live_version INTEGER,
	live_generation INTEGER NOT NULL,
	live_revision INTEGER NOT NULL,
	written_revision INTEGER NOT NULL,
	revised_at TIMESTAMP WITH TIME ZONE,
	traceparent VARCHAR(55),
	lease_owner VARCHAR(64),
	encoders JSON NOT NULL,
	branched_from JSON,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	deleted_at TIMESTAMP WITH TIME ZONE,
	swept_at TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_models PRIMARY KEY (name)
);

CREATE INDEX ix_models_owner_name ON models (owner, name);

CREATE TABLE orphans (
	key VARCHAR(255) NOT NULL,
	seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
	doomed BOOLEAN NOT NULL,
	CONSTRAINT pk_orphans PRIMARY KEY (key)
);

CREATE TABLE uploads (
	id VARCHAR(32) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	filename VARCHAR(128) NOT NULL,
	bytes BIGINT NOT NULL,
	sha256 VARCHAR(64),
	state VARCHAR(16) NOT NULL,
	file VARCHAR(32),
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	completed_at TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_uploads PRIMARY KEY (id)
);

CREATE INDEX ix_uploads_created_at ON uploads (created_at);

CREATE INDEX ix_uploads_owner ON uploads (owner);

CREATE TABLE webhooks (
	id VARCHAR(32) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	url VARCHAR(1024) NOT NULL,
	secret VARCHAR(128) NOT NULL,
	kinds JSON NOT NULL,
	model VARCHAR(48),
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	disabled_at TIMESTAMP WITH TIME ZONE,
	disabled_reason TEXT,
	failing_since TIMESTAMP WITH TIME ZONE,
	rests_until TIMESTAMP WITH TIME ZONE,
	lease_owner VARCHAR(64),
	lease_until TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_webhooks PRIMARY KEY (id)
);

CREATE INDEX ix_webhooks_owner ON webhooks (owner);

CREATE TABLE datasets (
	sequence SERIAL NOT NULL,
	id VARCHAR(32) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	model VARCHAR(48) NOT NULL,
	name VARCHAR(48) NOT NULL,
	pair_first VARCHAR(32) NOT NULL,
	pair_second VARCHAR(32) NOT NULL,
	request JSON NOT NULL,
	fingerprint VARCHAR(64),
	content_fingerprint VARCHAR(64),
	quarantine_reason TEXT,
	manifest JSON,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	sealed_at TIMESTAMP WITH TIME ZONE,
	deleted_at TIMESTAMP WITH TIME ZONE,
	swept_at TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_datasets PRIMARY KEY (sequence),
	CONSTRAINT uq_datasets_model_fingerprint UNIQUE (model, fingerprint),
	CONSTRAINT uq_datasets_id UNIQUE (id),
	CONSTRAINT fk_datasets_model_models FOREIGN KEY(model) REFERENCES models (name)
);

CREATE INDEX ix_datasets_model_sequence ON datasets (model, sequence);

CREATE INDEX ix_datasets_owner_sequence ON datasets (owner, sequence);

CREATE INDEX ix_datasets_unswept ON datasets (sequence) WHERE deleted_at IS NOT NULL AND swept_at IS NULL;

CREATE UNIQUE INDEX uq_datasets_model_content_fingerprint ON datasets (model, content_fingerprint) WHERE fingerprint IS NOT NULL;

CREATE TABLE deliveries (
	sequence BIGSERIAL NOT NULL,
	id VARCHAR(32) NOT NULL,
	webhook VARCHAR(32) NOT NULL,
	payload JSON NOT NULL,
	attempts INTEGER NOT NULL,
	next_at TIMESTAMP WITH TIME ZONE NOT NULL,
	status INTEGER,
	error TEXT,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	delivered_at TIMESTAMP WITH TIME ZONE,
	failed_at TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_deliveries PRIMARY KEY (sequence),
	CONSTRAINT uq_deliveries_id UNIQUE (id),
	CONSTRAINT fk_deliveries_webhook_webhooks FOREIGN KEY(webhook) REFERENCES webhooks (id)
);

CREATE INDEX ix_deliveries_created_at ON deliveries (created_at);

CREATE INDEX ix_deliveries_due ON deliveries (webhook, next_at) WHERE delivered_at IS NULL AND failed_at IS NULL;

CREATE INDEX ix_deliveries_webhook_sequence ON deliveries (webhook, sequence);

CREATE TABLE promotions (
	model VARCHAR(48) NOT NULL,
	generation INTEGER NOT NULL,
	version INTEGER NOT NULL,
	previous INTEGER,
	kind VARCHAR(16) NOT NULL,
	returns_to INTEGER,
	reason TEXT NOT NULL,
	actor VARCHAR(128) NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	CONSTRAINT pk_promotions PRIMARY KEY (model, generation),
	CONSTRAINT fk_promotions_model_models FOREIGN KEY(model) REFERENCES models (name)
);

CREATE TABLE sessions (
	id VARCHAR(32) NOT NULL,
	owner VARCHAR(64),
	name VARCHAR(128) NOT NULL,
	scopes JSON NOT NULL,
	secret_sha256 VARCHAR(64) NOT NULL,
	parent VARCHAR(32),
	agent TEXT NOT NULL,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
	revoked_at TIMESTAMP WITH TIME ZONE,
	last_used_at TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_sessions PRIMARY KEY (id),
	CONSTRAINT fk_sessions_parent_api_keys FOREIGN KEY(parent) REFERENCES api_keys (id)
);

CREATE INDEX ix_sessions_expires_at ON sessions (expires_at);

CREATE INDEX ix_sessions_owner ON sessions (owner);

CREATE TABLE jobs (
	sequence SERIAL NOT NULL,
	id VARCHAR(32) NOT NULL,
	owner VARCHAR(64) NOT NULL,
	model VARCHAR(48) NOT NULL,
	kind VARCHAR(16) NOT NULL,
	dataset VARCHAR(32),
	dataset_name VARCHAR(64) NOT NULL,
	merges JSON,
	erases JSON,
	dry_run BOOLEAN NOT NULL,
	state VARCHAR(16) NOT NULL,
	reason VARCHAR(32),
	message TEXT,
	revision INTEGER NOT NULL,
	attempt INTEGER NOT NULL,
	attempts_before_retry INTEGER NOT NULL,
	parent_version INTEGER,
	version INTEGER,
	progress JSON,
	preparation INTEGER NOT NULL,
	prepare_progress JSON,
	prepared JSON,
	report JSON,
	evaluation JSON,
	approval JSON,
	cancel_requested BOOLEAN NOT NULL,
	eligible_at TIMESTAMP WITH TIME ZONE,
	traceparent VARCHAR(55),
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	state_changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE,
	launched_at TIMESTAMP WITH TIME ZONE,
	heard_at TIMESTAMP WITH TIME ZONE,
	ended_at TIMESTAMP WITH TIME ZONE,
	finished_at TIMESTAMP WITH TIME ZONE,
	swept_at TIMESTAMP WITH TIME ZONE,
	CONSTRAINT pk_jobs PRIMARY KEY (sequence),
	CONSTRAINT uq_jobs_id UNIQUE (id),
	CONSTRAINT fk_jobs_model_models FOREIGN KEY(model) REFERENCES models (name),
	CONSTRAINT fk_jobs_dataset_datasets FOREIGN KEY(dataset) REFERENCES datasets (id)
);

CREATE INDEX ix_jobs_dataset ON jobs (dataset);

CREATE INDEX ix_jobs_eligible ON jobs (state, owner, eligible_at, sequence) WHERE eligible_at IS NOT NULL;

CREATE INDEX ix_jobs_ended ON jobs (model, finished_at) WHERE finished_at IS NOT NULL;

CREATE INDEX ix_jobs_model_sequence ON jobs (model, sequence);

CREATE INDEX ix_jobs_model_state_sequence ON jobs (model, state, sequence);

CREATE INDEX ix_jobs_open ON jobs (model, sequence) WHERE finished_at IS NULL;

CREATE INDEX ix_jobs_owner_sequence ON jobs (owner, sequence);

CREATE INDEX ix_jobs_owner_state_sequence ON jobs (owner, state, sequence);

CREATE INDEX ix_jobs_state_sequence ON jobs (state, sequence);

CREATE INDEX ix_jobs_unswept ON jobs (finished_at) WHERE finished_at IS NOT NULL AND swept_at IS NULL;

CREATE UNIQUE INDEX uq_jobs_reading_dataset ON jobs (dataset) WHERE (kind NOT IN ('unlearn', 'erase', 'merge'));

CREATE TABLE upload_uses (
	upload VARCHAR(32) NOT NULL,
	dataset VARCHAR(32) NOT NULL,
	CONSTRAINT pk_upload_uses PRIMARY KEY (upload, dataset),
	CONSTRAINT fk_upload_uses_upload_uploads FOREIGN KEY(upload) REFERENCES uploads (id),
	CONSTRAINT fk_upload_uses_dataset_datasets FOREIGN KEY(dataset) REFERENCES datasets (id)
);

CREATE INDEX ix_upload_uses_dataset ON upload_uses (dataset);

CREATE TABLE attempts (
	job VARCHAR(32) NOT NULL,
	number INTEGER NOT NULL,
	parent_version INTEGER,
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	started_at TIMESTAMP WITH TIME ZONE,
	ended_at TIMESTAMP WITH TIME ZONE,
	outcome VARCHAR(16),
	reason VARCHAR(32),
	message TEXT,
	progress_since TIMESTAMP WITH TIME ZONE,
	progress_interval FLOAT(53),
	CONSTRAINT pk_attempts PRIMARY KEY (job, number),
	CONSTRAINT fk_attempts_job_jobs FOREIGN KEY(job) REFERENCES jobs (id)
);

CREATE TABLE progress_points (
	job VARCHAR(32) NOT NULL,
	attempt INTEGER NOT NULL,
	interval INTEGER NOT NULL,
	at TIMESTAMP WITH TIME ZONE NOT NULL,
	figures JSON NOT NULL,
	CONSTRAINT pk_progress_points PRIMARY KEY (job, attempt, interval),
	CONSTRAINT fk_progress_points_job_jobs FOREIGN KEY(job) REFERENCES jobs (id)
);

CREATE TABLE versions (
	model VARCHAR(48) NOT NULL,
	number INTEGER NOT NULL,
	job VARCHAR(32),
	attempt INTEGER NOT NULL,
	parent INTEGER,
	kind VARCHAR(16) NOT NULL,
	dataset VARCHAR(32),
	dataset_name VARCHAR(64) NOT NULL,
	pair_first VARCHAR(32) NOT NULL,
	pair_second VARCHAR(32) NOT NULL,
	mean_recall FLOAT(53),
	max_drift FLOAT(53),
	capacity JSON NOT NULL,
	copied_from VARCHAR(48),
	created_at TIMESTAMP WITH TIME ZONE NOT NULL,
	stored_at TIMESTAMP WITH TIME ZONE,
	retired_at TIMESTAMP WITH TIME ZONE,
	swept_at TIMESTAMP WITH TIME ZONE,
	manifest_sha256 VARCHAR(64) NOT NULL,
	figures JSON NOT NULL,
	evaluation JSON NOT NULL,
	manifest JSON NOT NULL,
	CONSTRAINT pk_versions PRIMARY KEY (model, number),
	CONSTRAINT fk_versions_model_models FOREIGN KEY(model) REFERENCES models (name),
	CONSTRAINT uq_versions_job UNIQUE (job),
	CONSTRAINT fk_versions_job_jobs FOREIGN KEY(job) REFERENCES jobs (id)
);

CREATE INDEX ix_versions_model_pair_first_number ON versions (model, pair_first, number);

CREATE INDEX ix_versions_model_pair_second_number ON versions (model, pair_second, number);

CREATE INDEX ix_versions_unstored ON versions (model, number) WHERE stored_at IS NULL;

CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);

INSERT INTO alembic_version VALUES ('r0001');

INSERT INTO compatibility VALUES ('r0001', '73c41a38e48dbb528a6be2572b1117856f9565814bfcd27ae1ae6b870d994e93');

INSERT INTO event_positions (id, newest) VALUES (1, 0);
