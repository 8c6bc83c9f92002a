//! `rbee bench`: load on one OpenAI endpoint, or on several in turn, and what came of it. Owns the order of a
//! measurement; the parts are in files of their own.

mod arrivals;
mod chunk;
mod compare;
mod endpoint;
mod exchange;
mod load;
mod report;
mod settings;
mod statistics;
mod table;
mod workload;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use rbee_home::ExitStatus;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::now_ms;
use crate::cli::BenchArgs;
use crate::error::KeeperError;
use crate::keeper::Keeper;
use endpoint::{Endpoint, KeySource};
use exchange::Failure;
use load::Run;
use report::{Measured, Report, scenario_name};
use settings::{Settings, Warmup};
use workload::RunId;

pub(super) async fn bench(keeper: &Keeper, args: &BenchArgs) -> Result<ExitStatus, KeeperError> {
    let settings = Settings::new(args, now_ms(), !args.peer.is_empty())?;
    // A file that cannot be written is better known before than after.
    let file = args.json_file.as_deref().map(create).transpose()?;
    let endpoints = endpoints(keeper, args).await?;
    let date = jiff::Timestamp::now().to_string();
    let measured = measure(keeper, &settings, &endpoints).await?;
    let identities = endpoints.into_iter().map(|endpoint| endpoint.identity).collect();
    let report = Report::new(&settings, identities, &measured, date);
    if let (Some(file), Some(path)) = (file, args.json_file.as_deref()) {
        write(file, &report)
            .map_err(|source| KeeperError::ReportFile { path: path.to_owned(), source })?;
    }
    if keeper.output.is_json() {
        keeper.output.json(&report)?;
    } else {
        table::print(&keeper.output, &report)?;
    }
    if report.failed == 0 {
        return Ok(ExitStatus::Success);
    }
    let (failed, why) = (report.failed, table::failures(&report));
    if args.allow_errors {
        keeper.output.note(&format!("{failed} requests failed: {why}"));
        return Ok(ExitStatus::Success);
    }
    Err(KeeperError::BenchFailures { failed, why })
}

async fn endpoints(keeper: &Keeper, args: &BenchArgs) -> Result<Vec<Endpoint>, KeeperError> {
    let key = KeySource { file: args.key_file.as_deref(), variable: args.key_env.as_deref() };
    let peer_key =
        KeySource { file: args.peer_key_file.as_deref(), variable: args.peer_key_env.as_deref() };
    let peer_model = args.peer_model.as_deref().unwrap_or(&args.model);
    let peers: Vec<Endpoint> = args
        .peer
        .iter()
        .map(|typed| Endpoint::named(keeper, typed, peer_model, peer_key))
        .collect::<Result<_, _>>()?;
    // Last, because it may start a queen.
    let first = match &args.url {
        Some(typed) => Endpoint::named(keeper, typed, &args.model, key)?,
        None => Endpoint::queen(keeper, &args.model).await?,
    };
    let all: Vec<Endpoint> = [first].into_iter().chain(peers).collect();
    for (index, endpoint) in all.iter().enumerate() {
        let name = &endpoint.identity.name;
        if all.iter().skip(index + 1).any(|other| other.identity.name == *name) {
            let message = format!("two endpoints are called {name}");
            return Err(KeeperError::usage(message, "give them names: --peer NAME=URL"));
        }
    }
    Ok(all)
}

/// Measures every level, round by round, the endpoints in alternating order.
async fn measure(
    keeper: &Keeper,
    settings: &Settings,
    endpoints: &[Endpoint],
) -> Result<Vec<Measured>, KeeperError> {
    let scenario = scenario_name(settings.scenario);
    let rounds = usize::try_from(settings.rounds).unwrap_or(usize::MAX);
    let mut measured = Vec::new();
    for (level, load) in settings.levels.iter().copied().enumerate() {
        if settings.warmup == Warmup::Wave {
            for endpoint in endpoints {
                let run =
                    Run::start(settings, endpoint, load, RunId { level, round: None, part: 0 });
                let samples = Box::pin(run.warm_up()).await;
                let failures: Vec<&Failure> =
                    samples.iter().filter_map(|sample| sample.outcome.as_ref().err()).collect();
                if let (Some(first), true) = (failures.first(), failures.len() == samples.len()) {
                    let name = endpoint.identity.name.clone();
                    let reason = format!("{}: {}", first.class.name(), first.message);
                    return Err(KeeperError::EndpointUnusable { name, reason });
                }
            }
        }
        for round in 0..rounds {
            for index in compare::order(endpoints.len(), round) {
                let Some(endpoint) = endpoints.get(index) else { continue };
                keeper.output.note(&format!(
                    "{scenario}, {}, round {} of {rounds}: {}",
                    table::level(load),
                    round + 1,
                    endpoint.identity.name
                ));
                let (cpu, wall) = (own_cpu(), Instant::now());
                let id = RunId { level, round: Some(round), part: 0 };
                let run = Run::start(settings, endpoint, load, id);
                let samples = Box::pin(run.measure()).await;
                let (cpu, wall) = (own_cpu().saturating_sub(cpu), wall.elapsed());
                measured.push(Measured { endpoint: index, level, round, cpu, wall, samples });
            }
        }
    }
    Ok(measured)
}

/// CPU time of this process so far, user and system, of all threads.
fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn create(path: &Path) -> Result<File, KeeperError> {
    File::create(path).map_err(|source| KeeperError::ReportFile { path: path.to_owned(), source })
}

fn write(mut file: File, report: &Report) -> io::Result<()> {
    serde_json::to_writer(&mut file, report).map_err(io::Error::other)?;
    file.write_all(b"\n")
}
