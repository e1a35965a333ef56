/* A pool of threads that help whoever calls, if they are there.
 *
 * The caller works through the tasks itself and waits only for tasks that a helper has begun. A helper that the system
 * has taken off its core is therefore not missed; with a fork and join of fixed threads, every operation would wait
 * for it, a time slice each. One operation runs at a time: a second caller works alone. */
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

#define MAX_HELPERS 255
/* How often an idle helper looks before it goes to sleep, some 50 us: longer than the gaps within a model step. */
#define SPINS 4000

/* The job's number in the high half, the next task to take in the low half; CLOSED while the fields below change. */
static _Atomic uint64_t ticket;
#define CLOSED 0xffffffffu

/* The job. A helper may read them while they change: taking a task then fails, because the ticket has changed too. */
static _Atomic(octavo_task) job_run;
static _Atomic(const void *) job_call;
static _Atomic uint32_t job_num_tasks, job_num_helpers;
static _Atomic uint32_t num_done;

static pthread_mutex_t one_caller = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake_up = PTHREAD_COND_INITIALIZER;
static _Atomic int num_asleep;
static int num_helpers; /* guarded by one_caller */
static pid_t owner;     /* the process that the helpers live in */

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline uint32_t job_of(uint64_t any_ticket) { return (uint32_t)(any_ticket >> 32); }

/* Takes and runs tasks of the job in the ticket until none is left; returns the job's number. */
static uint32_t work(uint32_t helper) {
    uint64_t seen = atomic_load(&ticket);
    for (;;) {
        uint32_t task = (uint32_t)seen;
        if (task == CLOSED) { /* about to be opened */
            relax();
            seen = atomic_load(&ticket);
            continue;
        }
        octavo_task run = atomic_load(&job_run);
        const void *call = atomic_load(&job_call);
        if (task >= atomic_load(&job_num_tasks) || helper > atomic_load(&job_num_helpers)) return job_of(seen);
        if (!atomic_compare_exchange_weak(&ticket, &seen, seen + 1)) continue;
        run(call, task);
        atomic_fetch_add(&num_done, 1);
        seen = atomic_load(&ticket);
    }
}

static void *help(void *argument) {
    uint32_t helper = (uint32_t)(uintptr_t)argument, job = 0;
    for (;;) {
        for (int spin = 0; spin < SPINS && job_of(atomic_load(&ticket)) == job; spin++) relax();
        if (job_of(atomic_load(&ticket)) == job) {
            pthread_mutex_lock(&sleep_lock);
            atomic_fetch_add(&num_asleep, 1);
            while (job_of(atomic_load(&ticket)) == job) pthread_cond_wait(&wake_up, &sleep_lock);
            atomic_fetch_sub(&num_asleep, 1);
            pthread_mutex_unlock(&sleep_lock);
        }
        job = work(helper);
    }
    return NULL;
}

/* Starts helpers until there are `wanted`, or as many as the system allows. They take no signals: Python does. */
static void start_helpers(int64_t wanted) {
    if (owner != getpid()) { /* after a fork the helpers are gone */
        owner = getpid();
        num_helpers = 0;
        atomic_store(&num_asleep, 0);
        pthread_mutex_init(&sleep_lock, NULL);
        pthread_cond_init(&wake_up, NULL);
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (num_helpers < wanted && num_helpers < MAX_HELPERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(uintptr_t)(num_helpers + 1))) break;
        pthread_detach(thread);
        num_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void octavo_parallel(int64_t num_threads, int64_t num_tasks, octavo_task run, const void *call) {
    if (num_threads <= 1 || num_tasks <= 1 || num_tasks >= CLOSED || pthread_mutex_trylock(&one_caller)) {
        for (int64_t task = 0; task < num_tasks; task++) run(call, task);
        return;
    }
    if (num_helpers < num_threads - 1 || owner != getpid()) start_helpers(num_threads - 1);
    uint64_t job = ((atomic_load(&ticket) >> 32) + 1) << 32;
    atomic_store(&ticket, job | CLOSED);
    atomic_store(&job_run, run);
    atomic_store(&job_call, call);
    atomic_store(&job_num_tasks, (uint32_t)num_tasks);
    atomic_store(&job_num_helpers, (uint32_t)(num_threads - 1));
    atomic_store(&num_done, 0);
    atomic_store(&ticket, job);
    if (atomic_load(&num_asleep)) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake_up);
        pthread_mutex_unlock(&sleep_lock);
    }
    work(0);
    for (int spin = 0; atomic_load(&num_done) < (uint32_t)num_tasks; spin++) {
        relax();
        if (spin > SPINS) sched_yield();
    }
    pthread_mutex_unlock(&one_caller);
}
