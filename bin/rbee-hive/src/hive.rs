//! The hive as its routes and tasks see it: the parts, and the two reports that are made of several of them.

use std::sync::Arc;

use audit_logging::Auditor;
use metrics::gauge;
use rbee_api::hive::{HiveSnapshot, HiveStatus, Resources};
use rbee_api::worker::WorkerState;
use rbee_api::worker_exit::Breaker;
use rbee_home::Home;
use rbee_http::{ApiError, Metrics};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::gpus::EverSeen;
use crate::machine::Gpu;
use crate::models::Models;
use crate::platform;
use crate::registry::Registry;
use crate::reservations::Reservations;
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;

/// The parts of a hive.
#[derive(Debug)]
pub(crate) struct Hive {
    pub(crate) config: Config,
    pub(crate) home: Home,
    pub(crate) registry: Arc<Registry>,
    pub(crate) reservations: Arc<Reservations>,
    pub(crate) models: Arc<Models>,
    pub(crate) supervisor: Arc<Supervisor>,
    pub(crate) shutdown: Shutdown,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Auditor,
    /// Those whose gauges have to be kept true.
    pub(crate) gpus_seen: EverSeen,
    /// Owns the background tasks and imports.
    pub(crate) tasks: TaskTracker,
    pub(crate) started: Instant,
    /// Whether others can read what is said to this hive.
    pub(crate) plain_http_on_network: bool,
}

impl Hive {
    /// Returns everything the queen should know. Models are left out while the catalog cannot be read, which is logged.
    pub(crate) async fn snapshot(&self, epoch: u64, sequence: u64) -> HiveSnapshot {
        HiveSnapshot {
            epoch,
            sequence,
            draining: self.registry.is_draining(),
            plain_http_on_network: self.plain_http_on_network,
            resources: self.resources().await,
            models: self.models.list().await.unwrap_or_default(),
            workers: self.registry.snapshot(),
        }
    }

    pub(crate) async fn status(&self) -> Result<HiveStatus, ApiError> {
        let models = self.models.list().await?.len();
        Ok(HiveStatus {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            managed: self.config.managed,
            draining: self.registry.is_draining(),
            plain_http_on_network: self.plain_http_on_network,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            audit: self.audit.status(),
            resources: self.resources().await,
            models: u32::try_from(models).unwrap_or(u32::MAX),
            workers: self.registry.snapshot(),
        })
    }

    async fn resources(&self) -> Resources {
        let figures = self.reservations.figures().await;
        let vram = |of: fn(&Gpu) -> u64| {
            let sum = figures.gpus.iter().map(of).fold(0, u64::saturating_add);
            (!figures.gpus.is_empty()).then_some(sum)
        };
        Resources {
            memory_total_bytes: figures.memory.map_or(0, |memory| memory.total_bytes),
            memory_available_bytes: figures.memory_for_workers_bytes.unwrap_or(0),
            memory_reserved_bytes: figures.memory_reserved_bytes,
            memory_limit: self.supervisor.memory_limit(),
            disk_total_bytes: figures.disk.map(|disk| disk.total_bytes),
            disk_available_bytes: figures.disk.map(|disk| disk.available_bytes),
            vram_total_bytes: vram(|gpu| gpu.total_bytes),
            vram_available_bytes: vram(|gpu| gpu.available_bytes),
            cores: platform::processors(),
            workers_max: self.config.workers_max,
        }
    }

    /// Renders the metrics, those that are a state of the moment taken now.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a gauge is a float, and 53 bits of bytes are enough"
    )]
    pub(crate) async fn render_metrics(&self) -> String {
        let workers = self.registry.snapshot();
        for (state, label) in [
            (WorkerState::Starting, "starting"),
            (WorkerState::Ready, "ready"),
            (WorkerState::Stopping, "stopping"),
            (WorkerState::Failed, "failed"),
        ] {
            let count = workers.iter().filter(|worker| worker.state == state).count();
            gauge!("rbee_hive_workers", "state" => label).set(count as f64);
        }
        for (breaker, label) in [(Breaker::Open, "open"), (Breaker::HalfOpen, "half_open")] {
            let count = self.registry.breakers(breaker);
            gauge!("rbee_hive_breakers", "state" => label).set(count as f64);
        }
        if let Ok(models) = self.models.list().await {
            gauge!("rbee_hive_models").set(models.len() as f64);
        }
        self.gauge_resources().await;
        self.metrics.render()
    }

    /// Sets the gauges of what the machine has. What is not known has none.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a gauge is a float, and 53 bits of bytes are enough"
    )]
    async fn gauge_resources(&self) {
        let figures = self.reservations.figures().await;
        let set = |name: &'static str, value: u64| gauge!(name).set(value as f64);
        set("rbee_hive_workers_max", self.config.workers_max.into());
        set("rbee_hive_memory_reserved_bytes", figures.memory_reserved_bytes);
        if let Some(memory) = figures.memory {
            set("rbee_hive_memory_total_bytes", memory.total_bytes);
            let used = memory.total_bytes.saturating_sub(memory.available_bytes);
            set("rbee_hive_memory_used_bytes", used);
        }
        if let Some(available) = figures.memory_for_workers_bytes {
            set("rbee_hive_memory_available_bytes", available);
        }
        if let Some(disk) = figures.disk {
            set("rbee_hive_disk_total_bytes", disk.total_bytes);
            set("rbee_hive_disk_available_bytes", disk.available_bytes);
            set("rbee_hive_disk_used_bytes", disk.used_bytes);
            if let (Some(total), Some(available)) = (disk.inodes_total, disk.inodes_available) {
                set("rbee_hive_disk_inodes_total", total);
                set("rbee_hive_disk_inodes_available", available);
            }
        }
        for gpu in self.gpus_seen.with_gone(figures.gpus) {
            let used = gpu.total_bytes.saturating_sub(gpu.available_bytes);
            for (name, value) in [
                ("rbee_hive_vram_total_bytes", gpu.total_bytes),
                ("rbee_hive_vram_available_bytes", gpu.available_bytes),
                ("rbee_hive_vram_used_bytes", used),
            ] {
                gauge!(name, "gpu" => gpu.name.clone()).set(value as f64);
            }
        }
    }
}
