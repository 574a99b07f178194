// still, added: what the means of the channels that do not turn add to every score of a query
// (Centred). Needs centre and hadamard; reads the kernel's binding `query_rows` and writes its
// workgroup array `row`, with barriers. Twin: src/kernel/reference/attend_merge.rs.

override HEAD_DIM: u32;
override STILL: u32;     // first channel that has a mean and does not turn
override QUERY_ROW: u32; // numbers from one row of query_rows to the next

// Of row r and a query head, in the first invocation. The query's rotation is undone, and its
// weights go with those of the mean.
fn still_sum(r: u32, query_head: u32, thread: u32) -> f32 {
    let i = thread % HEAD_DIM;
    let first_part = thread < HEAD_DIM;
    let head = query_head / (params.query_heads / params.kv_heads);
    if (first_part) {
        row[i] = query_rows[(r * params.query_heads + query_head) * QUERY_ROW + i];
    }
    workgroupBarrier();
    var q = 0.0;
    if (first_part) {
        q = hadamard_outer(i);
    }
    workgroupBarrier();
    if (first_part) {
        row[i] = q;
    }
    workgroupBarrier();
    if (first_part) {
        q = hadamard_inner(i);
    }
    workgroupBarrier();
    if (first_part) {
        row[i] = select(0.0, q * centre_weights(head, i).x * centre_means(head, i).x, i >= STILL);
    }
    workgroupBarrier();
    var sum = 0.0;
    if (thread < 16u) {
        for (var e = thread; e < HEAD_DIM; e += 16u) {
            sum += row[e];
        }
    }
    workgroupBarrier();
    if (thread < 16u) {
        row[i] = sum;
    }
    workgroupBarrier();
    if (thread == 0u) {
        sum = 0.0;
        for (var e = 0u; e < 16u; e++) {
            sum += row[e];
        }
    }
    workgroupBarrier();
    return sum;
}
