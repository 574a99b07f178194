// restore: nothing, for codecs whose keys are stored as attention reads them.
const RESTORE_TILES = 0u;

struct RestoreIds { nothing: u32 }
struct RestoreDots { nothing: u32 }

fn restore_ids(stand: Stand, i: u32) -> RestoreIds {
    return RestoreIds(0u);
}

fn restore_open(physical: u32, i: u32) {}

fn restore_spread(stand: Stand, physical: u32, tile: u32, ids: RestoreIds, i: u32) {}

fn restore_dots(stand: Stand, physical: u32, n: u32, tile: u32, ids: RestoreIds, i: u32) -> RestoreDots {
    return RestoreDots(0u);
}

fn restore_put(dots: RestoreDots, i: u32) {}

fn restore_sum(physical: u32, tile: u32, i: u32) {}
