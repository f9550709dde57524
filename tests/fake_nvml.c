/* A libnvidia-ml.so.1 that answers what asrd asks, from the environment. Functions left out are "not found", as on old
 * drivers. It is a fake: it says nothing about a real driver.
 *   FAKE_GPUS   "NAME:MAJOR.MINOR:TOTAL_MIB:FREE_MIB;..."     FAKE_PROCESS "PID:MIB" on card 0 (MIB of -1: not available)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;
typedef struct { char name[64]; int major, minor; unsigned long long total, free; } card_t;

static card_t cards[8];
static unsigned int count;

int nvmlInit_v2(void) {
  const char *text = getenv("FAKE_GPUS");
  count = 0;
  while (text && *text && count < 8) {
    card_t *card = &cards[count];
    if (sscanf(text, "%63[^:]:%d.%d:%llu:%llu", card->name, &card->major, &card->minor, &card->total, &card->free) != 5) return 2;
    count++;
    text = strchr(text, ';');
    if (text) text++;
  }
  return count ? 0 : 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
}
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code ? "fake error" : "fine"; }
int nvmlSystemGetDriverVersion(char *out, unsigned int size) { snprintf(out, size, "570.00-fake"); return 0; }
int nvmlDeviceGetCount_v2(unsigned int *out) { *out = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **out) {
  if (index >= count) return 2;
  *out = &cards[index];
  return 0;
}
int nvmlDeviceGetName(void *card, char *out, unsigned int size) { snprintf(out, size, "%s", ((card_t *)card)->name); return 0; }
int nvmlDeviceGetUUID(void *card, char *out, unsigned int size) {
  snprintf(out, size, "GPU-%04d", (int)((card_t *)card - cards));
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor) {
  *major = ((card_t *)card)->major;
  *minor = ((card_t *)card)->minor;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *card, memory_t *out) {
  card_t *c = card;
  out->total = c->total << 20;
  out->free = c->free << 20;
  out->used = (c->total - c->free) << 20;
  return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned int *size, process_t *out) {
  const char *text = getenv("FAKE_PROCESS");
  unsigned int pid;
  long long mib;
  if (card != &cards[0] || !text || sscanf(text, "%u:%lld", &pid, &mib) != 2) { *size = 0; return 0; }
  if (*size < 1) { *size = 1; return 7; } /* NVML_ERROR_INSUFFICIENT_SIZE */
  memset(out, 0, sizeof *out);
  out->pid = pid;
  out->used = mib < 0 ? ~0ULL : (unsigned long long)mib << 20;
  *size = 1;
  return 0;
}
