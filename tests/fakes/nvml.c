/* A libnvidia-ml.so.1 that answers what asrd asks, from the environment. Functions left out are "not found", as on old
 * drivers. It is a fake: it says nothing about a real driver. What is read at each call can change while it is open.
 *   FAKE_GPUS     "NAME:MAJOR.MINOR:TOTAL_MIB:FREE_MIB;..."
 *   FAKE_MIG      "CARD:NAME:TOTAL_MIB:FREE_MIB;..." instances of cards; "CARD:" alone divides a card into none
 *   FAKE_PROCESS  "PID:MIB" on the first card, or instance (MIB of -1: not available)
 *   FAKE_INIT     code that opening it returns
 *   FAKE_LOST     "CARD": it is not to be reached, at each call; FAKE_FREE "MIB": free on every card, at each call
 *   FAKE_MODE     compute mode of every card     FAKE_CUDA  CUDA that the driver knows, 12080
 *   FAKE_DEVICE   a file that is held open as a card's device file is, from the first opening to the last shutdown
 *   FAKE_CALLS    a file that gets "init PID" or "shutdown PID" at each of them
 * As the real one, it counts openings, and answers nothing while it is shut.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT = 7, NOT_LOADED = 9, LOST = 15 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;
typedef struct { char name[64]; int major, minor, parent, divided; unsigned long long total, free; } card_t;

static card_t cards[16];
static unsigned int count, parts;
static int opened_lost = -1, openings, device = -1;

static void note(const char *call) {
  const char *path = getenv("FAKE_CALLS");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file) {
    fprintf(file, "%s %d\n", call, (int)getpid());
    fclose(file);
  }
}

static int lost(void) {
  const char *text = getenv("FAKE_LOST");
  return text && *text ? atoi(text) : -1;
}
static card_t *part(unsigned int index) { return &cards[8 + index]; }
static int is_part(card_t *card) { return card >= part(0); }
static card_t *whole(card_t *card) { return is_part(card) ? &cards[card->parent] : card; }
/* A card that was lost while the library was open stays so until it is opened anew. */
static int gone(void *card) {
  int index = (int)(whole(card) - cards);
  if (lost() == index) opened_lost = index;
  return opened_lost == index;
}

static void read_parts(const char *text) {
  for (parts = 0; text && *text && parts < 8; text = strchr(text, ';') ? strchr(text, ';') + 1 : NULL) {
    card_t *one = part(parts);
    one->parent = atoi(text);
    cards[one->parent].divided = 1;
    if (sscanf(text, "%*d:%63[^:]:%llu:%llu", one->name, &one->total, &one->free) == 3) parts++;
  }
}

int nvmlInit_v2(void) {
  const char *text = getenv("FAKE_GPUS"), *code = getenv("FAKE_INIT");
  if (code && *code) return atoi(code);
  if (openings > 0) {
    note("init");
    openings++;
    return 0;
  }
  count = 0;
  opened_lost = -1;
  memset(cards, 0, sizeof cards);
  while (text && *text && count < 8) {
    card_t *card = &cards[count];
    if (sscanf(text, "%63[^:]:%d.%d:%llu:%llu", card->name, &card->major, &card->minor, &card->total, &card->free) != 5) return INVALID;
    count++;
    text = strchr(text, ';');
    if (text) text++;
  }
  read_parts(getenv("FAKE_MIG"));
  if (!count) return NOT_LOADED;
  note("init");
  openings = 1;
  if (getenv("FAKE_DEVICE")) device = open(getenv("FAKE_DEVICE"), O_RDONLY | O_CLOEXEC);
  return 0;
}
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) {
  if (openings == 0) return UNINITIALIZED;
  note("shutdown");
  if (--openings == 0) {
    if (device >= 0) close(device);
    device = -1;
    count = parts = 0;
  }
  return 0;
}
const char *nvmlErrorString(int code) { return code ? "fake error" : "fine"; }
int nvmlSystemGetDriverVersion(char *out, unsigned int size) { snprintf(out, size, "570.00-fake"); return 0; }
int nvmlSystemGetCudaDriverVersion(int *out) {
  const char *text = getenv("FAKE_CUDA");
  if (!text) return NOT_SUPPORTED;
  *out = atoi(text);
  return 0;
}
int nvmlDeviceGetCount_v2(unsigned int *out) {
  *out = count;
  return openings ? 0 : UNINITIALIZED;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **out) {
  if (index >= count) return INVALID;
  if (gone(&cards[index])) return LOST;
  *out = &cards[index];
  return 0;
}
int nvmlDeviceGetName(void *card, char *out, unsigned int size) { snprintf(out, size, "%s", ((card_t *)card)->name); return 0; }
int nvmlDeviceGetUUID(void *card, char *out, unsigned int size) {
  if (gone(card)) return LOST;
  if (is_part(card)) snprintf(out, size, "MIG-%04d", (int)((card_t *)card - part(0)));
  else snprintf(out, size, "GPU-%04d", (int)((card_t *)card - cards));
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor) {
  if (is_part(card)) return NOT_SUPPORTED;
  *major = ((card_t *)card)->major;
  *minor = ((card_t *)card)->minor;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *card, memory_t *out) {
  card_t *c = card;
  const char *text = getenv("FAKE_FREE");
  unsigned long long free = text ? strtoull(text, NULL, 10) : c->free;
  if (!openings) return UNINITIALIZED;
  if (gone(card)) return LOST;
  out->total = c->total << 20;
  out->free = free << 20;
  out->used = (c->total - free) << 20;
  return 0;
}
int nvmlDeviceGetComputeMode(void *card, int *out) {
  const char *text = getenv("FAKE_MODE");
  (void)card;
  *out = text ? atoi(text) : 0;
  return 0;
}
int nvmlDeviceGetMigMode(void *card, unsigned int *now, unsigned int *pending) {
  if (gone(card)) return LOST;
  if (is_part(card) || ((card_t *)card)->major < 8) return NOT_SUPPORTED;
  *now = *pending = (unsigned int)((card_t *)card)->divided;
  return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *card, unsigned int *out) { (void)card; *out = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *card, unsigned int index, void **out) {
  unsigned int i;
  for (i = 0; i < parts; i++)
    if (part(i)->parent == (int)((card_t *)card - cards) && index-- == 0) {
      *out = part(i);
      return 0;
    }
  return NOT_FOUND;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *card, void **out) {
  if (!is_part(card)) return INVALID;
  *out = whole(card);
  return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned int *size, process_t *out) {
  const char *text = getenv("FAKE_PROCESS");
  unsigned int pid;
  long long mib;
  if (card != (parts ? part(0) : &cards[0]) || !text || sscanf(text, "%u:%lld", &pid, &mib) != 2) { *size = 0; return 0; }
  if (*size < 1) { *size = 1; return INSUFFICIENT; }
  memset(out, 0, sizeof *out);
  out->pid = pid;
  out->used = mib < 0 ? ~0ULL : (unsigned long long)mib << 20;
  *size = 1;
  return 0;
}
