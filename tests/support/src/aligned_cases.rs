//! The cases that the tests of the kernels of planes share.

use crate::{Case, Taken, Walk, case, centred, hadamard, protect, rtn};
use wgkv::aligned::{Alignment, Criterion};
use wgkv::{Bits, Element, Format, Gpu, Means, Precision, Rope, Scales};

/// Returns shapes, protections and ways of choosing planes; in each, the last step decodes one
/// token of every sequence.
pub fn aligned_cases(gpu: &Gpu) -> Vec<Case> {
    let long = vec![vec![(0, 140), (1, 300), (2, 5)], vec![(2, 1), (0, 1), (1, 1)]];
    let of = |why, head_dim, query_heads, kv_heads, alignment| {
        case(why, head_dim, query_heads, kv_heads, Format::aligned_f16()).steps(long.clone()).alignment(alignment).counted()
    };
    let mut cases = vec![
        of("everything is read, a share of 1", 64, 2, 2, Alignment::EVERYTHING),
        of("the published rule, a share of 4; reduced through workgroup memory", 128, 4, 1, Alignment::PUBLISHED).no_subgroups(),
        of("budgets, a share of 2, 80 channels", 80, 4, 2, Alignment::budget(32.0, 64.0)),
        of("budgets, a share of 3 with an idle place; sinks and a window", 96, 6, 2, Alignment::budget(8.0, 256.0)).protection(protect(4, 16)),
        of("the published rule, a share of 7: two blocks; slabs of a head", 64, 14, 2, Alignment::PUBLISHED).slabs().element(Element::F16),
        of(
            "published keys and a budget for values; the largest head, all pages in one slice",
            256,
            2,
            1,
            Alignment { keys: Criterion::Published, values: Criterion::Budget(64.0) },
        )
        .split_workgroups(1),
        of("the published rule over 37 pages: more than are gathered at once", 256, 2, 1, Alignment::PUBLISHED).steps(vec![vec![(0, 4700)], vec![(0, 1)]]),
        of("a budget over 37 pages: tokens are counted in more than one turn", 64, 4, 1, Alignment::budget(16.0, 64.0))
            .steps(vec![vec![(0, 4700)], vec![(0, 1)]])
            .split_workgroups(3),
        of("the published rule over sequences that slid", 64, 4, 2, Alignment::PUBLISHED).keep(150),
        of("the published rule, a head of 192: the second quads fill half the lanes", 192, 4, 1, Alignment::PUBLISHED),
        of("budgets, a head of 192", 192, 2, 1, Alignment::budget(16.0, 64.0)),
        of("budgets of nothing", 128, 2, 1, Alignment::budget(0.0, 0.0)),
        of("budgets without end", 64, 4, 1, Alignment::budget(1e9, 1e9)),
    ];
    let codes =
        |why, head_dim, query_heads, kv_heads, format, phi_k, phi_v| of(why, head_dim, query_heads, kv_heads, Alignment::budget(phi_k, phi_v)).format(format);
    use Bits::{Eight, Four};
    cases.extend([
        codes("codes: 4 bits, a share of 4, one group", 128, 4, 1, hadamard(Four, Four, 128), 0.5, 1.0),
        codes("codes: 8 bits, a share of 2, two groups; reduced through workgroup memory", 64, 4, 2, rtn(Eight, Eight, 32), 2.0, 8.0).no_subgroups(),
        codes("codes: 8-bit keys, 4-bit values, a share of 3 with an idle place; sinks and a window; 20 quads", 80, 6, 2, rtn(Eight, Four, 128), 16.0, 2.0)
            .protection(protect(4, 16)),
        codes("codes: 4-bit keys, 8-bit values, the largest head in eight groups; slabs of a head", 256, 2, 2, hadamard(Four, Eight, 32), 0.5, 4.0).slabs(),
        codes("codes: bytes for scales, a share of 7: two blocks; f16 rows", 96, 14, 2, hadamard(Four, Four, 32).with_scales(Scales::Byte), 1.0, 4.0)
            .element(Element::F16),
        codes("codes: heads stored in two ways", 64, 8, 2, rtn(Four, Four, 64), 1.0, 4.0)
            .precisions(vec![[Precision::new(Four, 32), Precision::new(Eight, 64)], [Precision::new(Eight, 64), Precision::new(Four, 32)]]),
        codes("codes: 8 bits over 37 pages", 64, 4, 1, hadamard(Eight, Eight, 64), 1.0, 4.0).steps(vec![vec![(0, 4700)], vec![(0, 1)]]).split_workgroups(3),
        codes("codes: a head of 192 in six groups, a share of 3", 192, 3, 1, hadamard(Eight, Eight, 32), 1.0, 4.0),
        codes("codes: budgets of nothing", 128, 2, 1, rtn(Four, Eight, 128), 0.0, 0.0),
        codes("codes: budgets without end", 64, 4, 1, hadamard(Eight, Four, 64), 1e9, 1e9),
    ]);
    // What the mean of the keys adds to a score, by waves and by polynomials, is beside what the
    // planes say.
    cases.extend([
        codes("Centred: 4 bits, a share of 4, one group", 128, 4, 1, centred(Four, Four, 128), 0.5, 1.0),
        codes(
            "Centred: 8 bits, a share of 3 with an idle place, two groups; sinks and a window; reduced through workgroup memory",
            64,
            6,
            2,
            centred(Eight, Eight, 32),
            2.0,
            8.0,
        )
        .no_subgroups()
        .protection(protect(4, 16)),
        codes("Centred: 8-bit keys, 4-bit values; no pair fast, a part of the head turns", 80, 4, 2, centred(Eight, Four, 128), 16.0, 2.0)
            .rope(Rope::none().with_frequencies((0..13).map(|p| 0.05 / f64::from(1 << p)).collect())),
        codes("Centred: 4-bit keys, 8-bit values, the largest head in eight groups, every pair fast", 256, 2, 2, centred(Four, Eight, 32), 0.5, 4.0)
            .slabs()
            .rope(Rope::new(2.0, 256).interleaved()),
        codes("Centred: heads stored in two ways, a share of 7: two blocks; f16 rows", 64, 14, 2, centred(Four, Four, 64), 1.0, 4.0)
            .element(Element::F16)
            .precisions(vec![[Precision::new(Four, 32), Precision::new(Eight, 64)], [Precision::new(Eight, 64), Precision::new(Four, 32)]]),
        codes("Centred: 8 bits over 37 pages, in straight-line code", 64, 4, 1, centred(Eight, Eight, 64), 1.0, 4.0)
            .steps(vec![vec![(0, 4700)], vec![(0, 1)]])
            .split_workgroups(3)
            .straight(true),
        codes("Centred: a sliding window of sequences that slid", 64, 4, 2, centred(Four, Eight, 64), 1.0, 4.0).keep(150).sliding_window(150),
        codes("Centred: a head of 192 in three groups", 192, 2, 1, centred(Four, Four, 64), 1.0, 4.0),
        codes("Centred: budgets of nothing", 128, 2, 1, centred(Four, Eight, 128), 0.0, 0.0),
        codes("Centred: budgets without end", 64, 4, 1, centred(Eight, Four, 64), 1e9, 1e9),
        codes("Centred: without means", 96, 3, 3, centred(Four, Four, 32), 1.0, 4.0).means(Means::natural(&case("", 96, 3, 3, centred(Four, Four, 32)).shape)),
    ]);
    if gpu.capability().subgroups.is_some_and(|(smallest, _)| smallest >= 32) {
        cases.extend([
            of("budgets, a share of 2, 80 channels; reduced through workgroup memory", 80, 4, 2, Alignment::budget(32.0, 64.0)).no_subgroups(),
            codes("codes: 4 bits, a share of 4; reduced through workgroup memory", 128, 4, 1, hadamard(Four, Four, 128), 0.5, 1.0).no_subgroups(),
        ]);
    }
    cases
}

/// Takes a case's steps, and attends in the last.
pub fn decoded(gpu: &Gpu, case: Case) -> (Walk, Taken) {
    let steps = case.steps.clone();
    let mut walk = Walk::new(gpu, case);
    let (last, before) = steps.split_last().expect("a step");
    for chunks in before {
        let rows = spread(&mut walk, chunks);
        walk.take_rows(chunks, rows, false);
    }
    let rows = spread(&mut walk, last);
    let taken = walk.take_rows(last, rows, true);
    (walk, taken)
}

/// Returns keys, values and queries whose channels differ by some binades, as those of models do:
/// for Centred, keys and values by as much about the means that it takes off.
pub fn spread(walk: &mut Walk, chunks: &[(usize, u32)]) -> [Vec<f32>; 3] {
    let mut rows = walk.draw(chunks.iter().map(|(_, n)| n).sum());
    let d = walk.case.shape.head_dim as usize;
    let learned = walk.case.means.as_ref();
    let means = [learned.map(|learned| learned.key_means(0)), learned.map(|learned| learned.value_means(0)), None];
    for (which, (row, means)) in rows.iter_mut().zip(means).enumerate() {
        for (i, x) in row.iter_mut().enumerate() {
            let mean = means.map_or(0.0, |means| means[i % means.len()]);
            // The second half turns with the first, so both are of one size.
            let size = [0.2, 1.0, 0.05, 0.5, 2.0, 0.1, 0.01][(i % d % (d / 2) + 3 * which) % 7];
            *x = mean + (*x - mean) * size;
        }
    }
    rows
}
