// cap: soft-capping of scores, cap * tanh(s / cap), both in log2 units. The kernel says what it caps
// at once (Capped). Written with exp2, since tanh of a large number is NaN on some devices. Twin:
// src/kernel/reference/cap.rs.

override SOFT_CAP: f32;  // 0 for none
override CAP_SLOPE: f32; // -2 log2(e) / SOFT_CAP

fn cap_scores(s: Capped) -> Capped {
    if (SOFT_CAP == 0.0) {
        return s;
    }
    let e = exp2(CAP_SLOPE * abs(s));
    // A score that is not finite stays so, since the output must be NaN.
    return select(SOFT_CAP * sign(s) * ((Capped(1.0) - e) / (Capped(1.0) + e)), s, abs(s) > Capped(3e38));
}
