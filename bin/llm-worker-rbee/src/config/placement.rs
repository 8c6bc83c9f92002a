//! Where the weights and the context memory of a model lie, and in which form,
//! as the command line says it. Looks at no device.

use std::fmt;
use std::str::FromStr;

use rbee_llama::context_params::FlashAttention;
use rbee_llama::kv_type::KvType;
use rbee_llama::model_params::LoadMode;

use crate::error::WorkerError;

/// Most GPUs that can be named: llama.cpp spreads a model over no more.
const GPUS_MAX: usize = 16;

/// The flags.
#[derive(Debug, clap::Args)]
pub(super) struct PlacementArguments {
    /// Layers computed on GPUs, the output counted as one more: a number, `all`, or `auto` for as many as fit
    #[arg(long, default_value = "auto", value_name = "N|all|auto")]
    gpu_layers: GpuLayers,
    /// GPUs to use, such as Vulkan0,Vulkan1; `none` computes on the processor alone [default: all]
    #[arg(long, value_name = "NAME,…")]
    device: Option<Gpus>,
    /// How keys are stored: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl
    #[arg(long, default_value_t = KvType::F16, value_name = "TYPE")]
    cache_type_k: KvType,
    /// How values are stored; a quantised form needs flash attention
    #[arg(long, default_value_t = KvType::F16, value_name = "TYPE")]
    cache_type_v: KvType,
    /// Whether attention is computed the memory-saving way; `auto` is where that is faster, or saves much
    #[arg(long, value_enum, default_value = "auto")]
    flash_attention: When,
    /// Whether the model file is mapped into memory, or else read [default: mapped, where the devices can]
    #[arg(long, value_enum, value_name = "on|off")]
    mmap: Option<Switch>,
    /// Keep the weights from being swapped out
    #[arg(long)]
    mlock: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum When {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

/// How many layers are computed on GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GpuLayers {
    /// As many as fit.
    Auto,
    All,
    Count(u32),
}

impl FromStr for GpuLayers {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            number => {
                let count = number.parse::<u16>();
                let count = count.map_err(|_| "must be auto, all or a number up to 65535")?;
                Ok(Self::Count(count.into()))
            }
        }
    }
}

/// The GPUs that a model may use, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpus(pub(crate) Vec<String>);

impl FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let mut names: Vec<String> = Vec::new();
        for name in text.split(',').map(str::trim) {
            if name.is_empty() || name == "none" || names.iter().any(|known| known == name) {
                return Err("must be `none`, or names of GPUs, each once".to_owned());
            }
            names.push(name.to_owned());
        }
        if names.len() > GPUS_MAX {
            return Err(format!("must name at most {GPUS_MAX} GPUs"));
        }
        Ok(Self(names))
    }
}

/// Where a model lies, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) gpu_layers: GpuLayers,
    /// `None` for all that there are.
    pub(crate) gpus: Option<Gpus>,
    pub(crate) type_k: KvType,
    pub(crate) type_v: KvType,
    pub(crate) flash_attention: FlashAttention,
    pub(crate) load_mode: LoadMode,
    pub(crate) lock_memory: bool,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            gpu_layers: GpuLayers::Auto,
            gpus: None,
            type_k: KvType::F16,
            type_v: KvType::F16,
            flash_attention: FlashAttention::Auto,
            load_mode: LoadMode::Auto,
            lock_memory: false,
        }
    }
}

impl PlacementArguments {
    /// Checks what the parser cannot.
    ///
    /// # Errors
    /// [`WorkerError::Usage`] for flags that contradict each other.
    pub(super) fn check(self) -> Result<Placement, WorkerError> {
        let flash_attention = match self.flash_attention {
            When::Auto => FlashAttention::Auto,
            When::On => FlashAttention::On,
            When::Off => FlashAttention::Off,
        };
        if self.cache_type_v.is_quantized() && flash_attention == FlashAttention::Off {
            return Err(usage(format!(
                "--cache-type-v {} needs flash attention; leave out --flash-attention off, or use f16",
                self.cache_type_v
            )));
        }
        if self.gpus_are_none() && matches!(self.gpu_layers, GpuLayers::Count(1..)) {
            return Err(usage("--gpu-layers needs a GPU and --device none allows none"));
        }
        Ok(Placement {
            gpu_layers: self.gpu_layers,
            gpus: self.device,
            type_k: self.cache_type_k,
            type_v: self.cache_type_v,
            flash_attention,
            load_mode: match self.mmap {
                None => LoadMode::Auto,
                Some(Switch::On) => LoadMode::Mmap,
                Some(Switch::Off) => LoadMode::Read,
            },
            lock_memory: self.mlock,
        })
    }

    fn gpus_are_none(&self) -> bool {
        self.device.as_ref().is_some_and(|gpus| gpus.0.is_empty())
    }
}

fn usage(reason: impl fmt::Display) -> WorkerError {
    WorkerError::Usage { reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        placement: PlacementArguments,
    }

    fn check(arguments: &[&str]) -> Result<Placement, String> {
        let parsed = Program::try_parse_from([&["program"], arguments].concat());
        let parsed = parsed.map_err(|error| error.to_string())?;
        parsed.placement.check().map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_leaves_everything_to_the_machine() {
        assert_eq!(check(&[]).unwrap(), Placement::default());
    }

    #[test]
    fn what_is_said_is_taken() {
        let placement = check(&[
            "--gpu-layers=12",
            "--device=Vulkan0, CUDA1",
            "--cache-type-k=q4_0",
            "--cache-type-v=iq4_nl",
            "--flash-attention=on",
            "--mmap=off",
            "--mlock",
        ])
        .unwrap();
        assert_eq!(placement.gpu_layers, GpuLayers::Count(12));
        assert_eq!(placement.gpus.unwrap().0, ["Vulkan0", "CUDA1"]);
        assert_eq!((placement.type_k, placement.type_v), (KvType::Q4_0, KvType::Iq4Nl));
        assert_eq!(placement.flash_attention, FlashAttention::On);
        assert_eq!((placement.load_mode, placement.lock_memory), (LoadMode::Read, true));
        assert_eq!(check(&["--device=none"]).unwrap().gpus, Some(Gpus(Vec::new())));
        assert_eq!(check(&["--gpu-layers=all"]).unwrap().gpu_layers, GpuLayers::All);
        // Only values need it.
        assert!(check(&["--cache-type-k=q8_0", "--flash-attention=off"]).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arguments, named) in [
            (&["--gpu-layers=many"][..], "--gpu-layers"),
            (&["--gpu-layers=-1"], "--gpu-layers"),
            (&["--gpu-layers=65536"], "--gpu-layers"),
            (&["--device="], "--device"),
            (&["--device=A,,B"], "--device"),
            (&["--device=A,A"], "--device"),
            (&["--device=A,none"], "--device"),
            (&["--cache-type-k=f64"], "--cache-type-k"),
            (&["--cache-type-v=q6_k"], "--cache-type-v"),
            (&["--flash-attention=maybe"], "--flash-attention"),
            (&["--mmap=1"], "--mmap"),
            (&["--cache-type-v=q8_0", "--flash-attention=off"], "--cache-type-v"),
            (&["--device=none", "--gpu-layers=3"], "--gpu-layers"),
        ] {
            let refused = check(arguments).unwrap_err();
            assert!(refused.contains(named), "{arguments:?}: {refused}");
        }
    }
}
