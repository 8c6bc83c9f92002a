//! The real `rbee-hive` with real `llm-worker-rbee --engine echo` processes: what it answers, what it starts, and what
//! is left when something dies.

#[cfg(test)]
#[path = "hive/fake_queen.rs"]
mod fake_queen;
#[cfg(test)]
#[path = "hive/fake_worker.rs"]
mod fake_worker;
#[cfg(test)]
#[path = "hive/gguf.rs"]
mod gguf;
#[cfg(test)]
#[path = "hive/processes.rs"]
mod processes;
#[cfg(test)]
#[path = "hive/program.rs"]
mod program;
#[cfg(test)]
#[path = "hive/stream.rs"]
mod stream;

#[cfg(test)]
#[path = "hive/adoption.rs"]
mod adoption;
#[cfg(test)]
#[path = "hive/contacts.rs"]
mod contacts;
#[cfg(test)]
#[path = "hive/ending.rs"]
mod ending;
#[cfg(test)]
#[path = "hive/estimate.rs"]
mod estimate;
#[cfg(test)]
#[path = "hive/faults.rs"]
mod faults;
#[cfg(test)]
#[path = "hive/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "hive/liveness.rs"]
mod liveness;
#[cfg(test)]
#[path = "hive/logs.rs"]
mod logs;
#[cfg(test)]
#[path = "hive/models.rs"]
mod models;
#[cfg(test)]
#[path = "hive/past.rs"]
mod past;
#[cfg(test)]
#[path = "hive/resets.rs"]
mod resets;
#[cfg(test)]
#[path = "hive/restarts.rs"]
mod restarts;
#[cfg(test)]
#[path = "hive/security.rs"]
mod security;
#[cfg(test)]
#[path = "hive/shutdown.rs"]
mod shutdown;
#[cfg(test)]
#[path = "hive/start.rs"]
mod start;
#[cfg(test)]
#[path = "hive/workers.rs"]
mod workers;
