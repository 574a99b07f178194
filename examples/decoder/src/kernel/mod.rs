//! The kernels: each has one file here and one in `shaders/`, under the same name.

pub mod embed;
pub mod heads;
pub mod normalize;
pub mod project;
pub mod project_matrix;
pub mod project_tiles;
pub mod sample;

mod parts;

use wgkv::low_level::{Kernel, Variant};

/// All kernels.
pub const ALL: [&Kernel; 7] =
    [&embed::KERNEL, &heads::KERNEL, &normalize::KERNEL, &project::KERNEL, &project_matrix::KERNEL, &project_tiles::KERNEL, &sample::KERNEL];

/// Returns a variant of every kind that [`Decoder`](crate::Decoder) makes, for checking that they
/// are valid WGSL.
pub fn variants() -> Vec<Variant> {
    use crate::layout::Layout;
    use project::Epilogue;
    let flags = [false, true];
    let mut all = Vec::new();
    for layout in Layout::ALL {
        all.extend(flags.map(|scaled| embed::variant(layout, scaled)));
        for epilogue in Epilogue::ALL {
            for bias in flags {
                all.push(project_tiles::variant(layout, epilogue, bias));
                all.extend((1..=project_matrix::TILES).map(|tiles| project_matrix::variant(layout, epilogue, bias, tiles)));
                for (norm, subgroups, one) in [(false, None, true), (true, Some((32, 32)), true), (true, None, false), (false, Some((8, 8)), false)] {
                    all.push(project::variant(layout, epilogue, bias, norm, one, project::lanes(subgroups)));
                }
            }
        }
    }
    for norm in flags {
        for select in flags {
            all.extend(normalize::Output::ALL.map(|output| normalize::variant(norm, select, output)));
        }
        all.extend(flags.map(|turn| heads::variant(norm, turn)));
    }
    all.push(sample::variant());
    all
}

fn flag(name: &'static str, on: bool) -> (&'static str, f64) {
    (name, f64::from(u8::from(on)))
}
