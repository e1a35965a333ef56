/* Runs the tasks of one operation on several threads. */
#ifndef OCTAVO_THREADS_H
#define OCTAVO_THREADS_H

#include <stdint.h>

typedef void (*octavo_task)(const void *call, int64_t task);

/* Calls run(call, task) once for every task in [0, num_tasks), on at most num_threads threads, the caller's included,
 * and returns when all are done. Which thread runs which task is open: a task must not depend on it. */
void octavo_parallel(int64_t num_threads, int64_t num_tasks, octavo_task run, const void *call);

#endif
