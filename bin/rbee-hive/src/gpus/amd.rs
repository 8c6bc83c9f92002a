//! AMD's GPUs, whose driver has the memory in files: `mem_info_vram_total` and `mem_info_vram_used` of each card.

use std::fs;
use std::path::Path;

use super::Gpu;

/// Reads all cards below `cards`, in the order of their numbers.
pub(super) fn read(cards: &Path) -> Vec<Gpu> {
    let mut numbers: Vec<u32> = fs::read_dir(cards)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("card")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let known = numbers.iter().filter_map(|number| {
        let device = cards.join(format!("card{number}/device"));
        let figure = |file: &str| fs::read_to_string(device.join(file)).ok()?.trim().parse().ok();
        Some((figure("mem_info_vram_total")?, figure("mem_info_vram_used")?))
    });
    let named = known.enumerate();
    named.filter_map(|(at, (total, used))| Gpu::checked(format!("amd{at}"), total, used)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_that_tell_their_memory_are_found_and_others_left_out() {
        let directory = tempfile::tempdir().unwrap();
        for (card, total, used) in
            [("card10", "300", "1"), ("card1", "200\n", "50\n"), ("card2", "many", "1")]
        {
            let device = directory.path().join(card).join("device");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("mem_info_vram_total"), total).unwrap();
            fs::write(device.join("mem_info_vram_used"), used).unwrap();
        }
        fs::create_dir_all(directory.path().join("card0/device")).unwrap();
        fs::create_dir_all(directory.path().join("card1-DP-1")).unwrap();
        let gpu = |name: &str, total_bytes, available_bytes| Gpu {
            name: name.to_owned(),
            total_bytes,
            available_bytes,
        };
        assert_eq!(read(directory.path()), [gpu("amd0", 200, 150), gpu("amd1", 300, 299)]);
        assert_eq!(read(&directory.path().join("missing")), []);
    }
}
