/* The first process of a pod: holds its namespaces and reaps the orphans of a shared process namespace.
 *
 * Built static and alone in its image. Ends with status 0 on SIGTERM or SIGINT. */
#include <signal.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(void) {
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

int main(void) {
    sigset_t wanted;
    int got;

    sigemptyset(&wanted);
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGINT);
    sigaddset(&wanted, SIGCHLD);
    /* Blocked and taken synchronously: no handler, so nothing to race with. */
    if (sigprocmask(SIG_BLOCK, &wanted, NULL) != 0)
        return 1;
    for (;;) {
        if (sigwait(&wanted, &got) != 0)
            return 1;
        if (got != SIGCHLD)
            return 0;
        reap();
    }
}
