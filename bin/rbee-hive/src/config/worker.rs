//! How workers are started: each setting with its unit, default and range, and the arguments that tell a worker. Never
//! looks at a device.

use std::ffi::OsString;
use std::path::Path;

use model_catalog::{CacheType, Scores};
use rbee_api::worker::Backend;
use rbee_home::ConfigError;
use serde::{Deserialize, Deserializer};

use super::check::check_range;

/// What a worker may take besides its model: the program, its threads, its log.
const MARGIN_BYTES: u64 = 512 << 20;
/// Most GPUs that can be named: llama.cpp spreads a model over no more.
const GPUS_MAX: usize = 16;

/// How workers are started.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct WorkerConfig {
    /// What turns requests into tokens: `llama`, or `echo` for tests. Default: `llama`.
    pub(crate) engine: Backend,
    /// Requests a worker decodes at once; fewer where memory is short. Default: 8. Range: 1 to 256.
    pub(crate) slots: u32,
    /// Tokens of context each request can have; fewer where the model was trained for fewer. Default: 4096.
    /// Range: 64 to 1048576.
    pub(crate) context_tokens: u32,
    /// Threads that compute. Absent: one a physical core. Range: 1 to 1024.
    pub(crate) threads: Option<u32>,
    /// `OMP_NUM_THREADS` of a worker. Absent: not set. Range: 1 to 1024.
    pub(crate) omp_num_threads: Option<u32>,
    /// `GOMP_SPINCOUNT` of a worker: for how many turns a thread spins at a barrier before it sleeps. Left to itself,
    /// libgomp spins for longer than a time slice of the kernel. Default: 1000.
    pub(crate) gomp_spincount: u64,
    /// Mebibytes that a worker may keep of conversations that have no slot any more. Default: 512. Range: 0 to 1048576.
    pub(crate) cache_ram_mib: u64,
    /// Mebibytes of disk, of all workers together, for conversations that outlive their workers. Prompts and replies
    /// lie in `cache/` then. Default: 0, none. Range: 0 to 16777216.
    pub(crate) cache_disk_mib: u64,
    /// Whether requests of different users may share computed prompts. Default: no.
    pub(crate) cache_shared: bool,
    /// How slots lie in the context memory. Absent: split on a processor, unified on a GPU.
    pub(crate) kv_layout: Option<KvLayout>,
    /// Whether replies that repeat earlier text are guessed ahead. Default: `auto`, where it is faster.
    pub(crate) speculation: Speculation,
    /// Layers computed on GPUs, the output counted as one more: a number, `all` or `auto`. Default: `auto`, as many
    /// as fit. Range: 0 to 65535.
    pub(crate) gpu_layers: GpuLayers,
    /// GPUs that workers use, by llama.cpp's names. Absent: all. Empty: none. At most 16.
    pub(crate) device: Option<Vec<String>>,
    /// How keys are stored. Default: `f16`.
    pub(crate) cache_type_k: CacheType,
    /// How values are stored; a quantised form needs flash attention. Default: `f16`.
    pub(crate) cache_type_v: CacheType,
    /// Whether attention is computed the memory-saving way. Default: `auto`, wherever the device can.
    pub(crate) flash_attention: FlashAttention,
    /// Whether model files are mapped into memory, or else read. Absent: mapped, where the devices can.
    pub(crate) mmap: Option<bool>,
    /// Whether weights are kept from being swapped out. Default: no.
    pub(crate) mlock: bool,
    /// Mebibytes that a worker may take before the kernel ends it, where the machine has control groups. Absent: a
    /// quarter and 512 MiB more than the estimate. 0: no limit. Range: 0 to 16777216.
    pub(crate) memory_limit_mib: Option<u64>,
}

/// How much a worker may take before the kernel ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerMemoryLimit {
    /// A margin above the estimate.
    Estimated,
    /// So many bytes.
    Bytes(u64),
    /// As much as there is.
    None,
}

impl WorkerMemoryLimit {
    /// Returns the limit of a worker that was granted so much. The estimate knows what llama.cpp asks for, and not what
    /// the program around it takes, which the margin is for.
    pub(crate) fn of(self, granted_bytes: u64) -> Option<u64> {
        match self {
            Self::Estimated => {
                Some(granted_bytes.saturating_add(granted_bytes / 4).saturating_add(MARGIN_BYTES))
            }
            Self::Bytes(bytes) => Some(bytes),
            Self::None => None,
        }
    }
}

/// How slots lie in the context memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KvLayout {
    Split,
    Unified,
}

/// Whether replies are guessed ahead.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Speculation {
    Auto,
    Off,
}

/// How many layers are computed on GPUs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GpuLayers {
    Auto,
    All,
    Count(u16),
}

impl<'de> Deserialize<'de> for GpuLayers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected `auto`, `all` or a number from 0 to 65535")]
        enum Written {
            Word(Word),
            Count(u16),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Word {
            Auto,
            All,
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::Word(Word::Auto) => Self::Auto,
            Written::Word(Word::All) => Self::All,
            Written::Count(count) => Self::Count(count),
        })
    }
}

/// Whether attention is computed the memory-saving way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FlashAttention {
    Auto,
    On,
    Off,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            engine: Backend::Llama,
            slots: 8,
            context_tokens: 4096,
            threads: None,
            omp_num_threads: None,
            gomp_spincount: 1000,
            cache_ram_mib: 512,
            cache_disk_mib: 0,
            cache_shared: false,
            kv_layout: None,
            speculation: Speculation::Auto,
            gpu_layers: GpuLayers::Auto,
            device: None,
            cache_type_k: CacheType::F16,
            cache_type_v: CacheType::F16,
            flash_attention: FlashAttention::Auto,
            mmap: None,
            mlock: false,
            memory_limit_mib: None,
        }
    }
}

impl WorkerConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_range("worker.slots", self.slots.into(), 1, 256)?;
        check_range("worker.context_tokens", self.context_tokens.into(), 64, 1_048_576)?;
        check_range("worker.cache_ram_mib", self.cache_ram_mib, 0, 1 << 20)?;
        check_range("worker.cache_disk_mib", self.cache_disk_mib, 0, 1 << 24)?;
        check_range("worker.memory_limit_mib", self.memory_limit_mib.unwrap_or(0), 0, 1 << 24)?;
        for (key, threads) in
            [("worker.threads", self.threads), ("worker.omp_num_threads", self.omp_num_threads)]
        {
            check_range(key, threads.unwrap_or(1).into(), 1, 1024)?;
        }
        let wrong = |key, reason: &str| Err(ConfigError::Value { key, reason: reason.to_owned() });
        if self.cache_type_v.is_quantised() && self.flash_attention == FlashAttention::Off {
            return wrong("worker.cache_type_v", "is quantised and needs worker.flash_attention");
        }
        let Some(names) = &self.device else { return Ok(()) };
        if names.len() > GPUS_MAX {
            return wrong("worker.device", "must name at most 16 GPUs");
        }
        let is_name = |name: &String| {
            !name.is_empty()
                && name != "none"
                && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        };
        let is_repeated = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
        if names.iter().any(|name| !is_name(name) || is_repeated(name)) {
            return wrong(
                "worker.device",
                "must hold names of GPUs such as Vulkan0, each once; [] uses none",
            );
        }
        if names.is_empty() && matches!(self.gpu_layers, GpuLayers::Count(1..)) {
            return wrong("worker.gpu_layers", "needs a GPU and worker.device allows none");
        }
        Ok(())
    }

    /// Returns how much a worker may take before the kernel ends it.
    pub(crate) fn memory_limit(&self) -> WorkerMemoryLimit {
        match self.memory_limit_mib {
            None => WorkerMemoryLimit::Estimated,
            Some(0) => WorkerMemoryLimit::None,
            Some(mib) => WorkerMemoryLimit::Bytes(mib << 20),
        }
    }

    /// Says whether workers of these settings keep the scores of attention.
    pub(crate) fn scores(&self) -> Scores {
        let is_fast = (self.cache_type_k, self.cache_type_v) == (CacheType::F16, CacheType::F16);
        let must_be_flash = is_fast || self.cache_type_v.is_quantised();
        match self.flash_attention {
            FlashAttention::Off => Scores::Yes,
            FlashAttention::Auto if !must_be_flash => Scores::WhereSmall,
            FlashAttention::Auto | FlashAttention::On => Scores::No,
        }
    }

    /// Returns how many GPUs a worker may use that has to fit into them altogether; `None` where it does not have to.
    pub(crate) fn gpus_used(&self) -> Option<usize> {
        let used = self.device.as_ref().map_or(usize::MAX, Vec::len);
        let has_to = matches!(self.gpu_layers, GpuLayers::All) && self.engine == Backend::Llama;
        (has_to && used > 0).then_some(used)
    }

    /// Returns the arguments by which a worker treats its devices and its context memory, besides the sizes that
    /// admission decides. What outlives a worker lies in `cache_dir`.
    pub(crate) fn arguments(&self, cache_dir: &Path) -> Vec<OsString> {
        let speculation = match self.speculation {
            Speculation::Auto => "auto",
            Speculation::Off => "off",
        };
        let gpu_layers = match self.gpu_layers {
            GpuLayers::Auto => "auto".to_owned(),
            GpuLayers::All => "all".to_owned(),
            GpuLayers::Count(count) => count.to_string(),
        };
        let flash_attention = match self.flash_attention {
            FlashAttention::Auto => "auto",
            FlashAttention::On => "on",
            FlashAttention::Off => "off",
        };
        let given = [
            format!("--speculation={speculation}"),
            format!("--gpu-layers={gpu_layers}"),
            format!("--cache-type-k={}", self.cache_type_k.as_str()),
            format!("--cache-type-v={}", self.cache_type_v.as_str()),
            format!("--flash-attention={flash_attention}"),
        ];
        let device = self.device.as_ref().map(|names| {
            let names = names.join(",");
            format!("--device={}", if names.is_empty() { "none" } else { names.as_str() })
        });
        let mmap = self.mmap.map(|mmap| format!("--mmap={}", if mmap { "on" } else { "off" }));
        let mlock = self.mlock.then(|| "--mlock".to_owned());
        let shared = self.cache_shared.then(|| "--cache-shared".to_owned());
        let layout = self.kv_layout.map(|layout| match layout {
            KvLayout::Split => "--kv-layout=split".to_owned(),
            KvLayout::Unified => "--kv-layout=unified".to_owned(),
        });
        let given =
            given.into_iter().chain([device, mmap, mlock, shared, layout].into_iter().flatten());
        let mut arguments: Vec<OsString> = given.map(OsString::from).collect();
        if self.cache_disk_mib > 0 {
            let limit = format!("--cache-disk={}", self.cache_disk_mib);
            arguments.extend([limit.into(), "--cache-dir".into(), cache_dir.into()]);
        }
        arguments
    }
}
