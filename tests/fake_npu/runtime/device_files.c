/* Preloaded: shows a program the device files of $FAKE_NPU_DEV in /dev, so that probing by file finds the NPUs. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* torch_npu looks up functions another way when it sees a preloaded library; one that only shows files is none of its
   business. The processes that this one starts are given the variable anew, or have no need of it. */
__attribute__((constructor)) static void hide(void) { unsetenv("LD_PRELOAD"); }

static const char *instead(const char *path, char *room, size_t size) {
    const char *folder = getenv("FAKE_NPU_DEV");
    if (!folder || !path || strncmp(path, "/dev/davinci", 12)) return path;
    snprintf(room, size, "%s/%s", folder, path + 5);
    return room;
}

DIR *opendir(const char *path) {
    const char *folder = getenv("FAKE_NPU_DEV");
    DIR *(*real)(const char *) = (DIR *(*)(const char *))dlsym(RTLD_NEXT, "opendir");
    return real(folder && (!strcmp(path, "/dev") || !strcmp(path, "/dev/")) ? folder : path);
}

#define SHOW(name, type)                                                          \
    int name(const char *path, type *status) {                                    \
        char room[4096];                                                          \
        int (*real)(const char *, type *) = (int (*)(const char *, type *))dlsym(RTLD_NEXT, #name); \
        return real(instead(path, room, sizeof room), status);                    \
    }
SHOW(stat, struct stat)
SHOW(lstat, struct stat)
SHOW(stat64, struct stat64)
SHOW(lstat64, struct stat64)
